//! The benchmark's report: its figures agree with each other. None of them is judged.

mod common;

use std::time::Duration;

use common::{Fixture, Spec};
use smallthinker_core::bench::{self, BenchOptions, BenchReport, TokenCost};
use smallthinker_core::tensor::DType;
use smallthinker_core::{CancelFlag, Error, GenerateOptions, Model, ModelOptions, Stage};

fn fixture(dtype: DType, down_by_neuron: bool) -> Fixture {
    // Large enough that a pass takes longer than what is between two passes.
    Fixture::new(Spec {
        hidden: 256,
        ffn: 512,
        experts: 8,
        top_k: 4,
        dtype,
        down_by_neuron,
        ..Spec::default()
    })
}

const GEN_TOKENS: usize = 24;

fn measure(fixture: &Fixture, repetitions: usize, detailed: bool) -> BenchReport {
    let options =
        BenchOptions { prompt_tokens: 16, gen_tokens: GEN_TOKENS, repetitions, text: None, detailed };
    let mut seen = Vec::new();
    let report = bench::run(&fixture.open(), &options, &CancelFlag::new(), &mut |done, total| {
        seen.push((done, total));
        true
    });
    assert_eq!(seen, (1..=repetitions).map(|i| (i, repetitions)).collect::<Vec<_>>());
    report.unwrap()
}

fn check_cost(cost: &TokenCost, name: &str) {
    let stages = cost.stages.total_time();
    assert!(stages <= cost.time && cost.time <= 2 * stages, "{name}: {stages:?} of {:?}", cost.time);
}

#[test]
fn figures_of_a_report_agree() {
    for (dtype, repetitions) in [(DType::Q4_0, 3), (DType::Q8_0, 2)] {
        let report = measure(&fixture(dtype, false), repetitions, false);
        for spread in [report.prefill, report.decode, report.time_to_first_token] {
            assert!(0.0 < spread.min && spread.min <= spread.median && spread.median <= spread.max);
        }
        check_cost(&report.prefill_token, "prefill");
        check_cost(&report.decode_token, "decode");
        let speed = 1.0 / report.decode_token.time.as_secs_f64();
        assert!((0.999 * report.decode.min..=1.001 * report.decode.max).contains(&speed), "{report:?}");
        // Each stage's bytes per token are rounded down.
        let rounding = Stage::ALL.len() as u64;
        let bytes = report.decode_token.stages.total_bytes();
        assert!((report.bytes_per_token - rounding..=report.bytes_per_token).contains(&bytes), "{report:?}");
        assert!(report.decode_token.stages.bytes(Stage::Down) > 0);
        let bandwidth = report.bytes_per_token as f64 * report.decode.median;
        assert!((report.decode_bandwidth / bandwidth - 1.0).abs() < 1e-9);
        assert!(0.0 < report.read_bandwidth_plain && report.read_bandwidth_plain <= report.read_bandwidth);
        let share = report.decode_bandwidth / report.read_bandwidth;
        assert!((report.read_bandwidth_share / share - 1.0).abs() < 1e-9);
        assert!(report.load_time > Duration::ZERO);
    }
}

#[test]
fn attention_reads_the_keys_and_values_that_a_token_sees() {
    let spec = Spec { layers: 5, window: 8, ..Spec::default() };
    let report = measure(&Fixture::new(spec.clone()), 1, false);
    // Layers 0 and 4 see all positions, the others eight. Keys and values, in half precision.
    let per_position = 2 * 2 * spec.kv_heads * spec.head_dim;
    let positions = |len: usize| 2 * len + 3 * len.min(8);
    let bytes: usize = (16 + 1..=16 + GEN_TOKENS).map(|len| positions(len) * per_position).sum();
    assert_eq!(report.decode_token.stages.bytes(Stage::Attention), (bytes / GEN_TOKENS) as u64);
}

#[test]
fn detailed_timing_tells_gate_from_up() {
    let fixture = fixture(DType::Q4_0, false);
    for detailed in [false, true] {
        let stages = measure(&fixture, 1, detailed).decode_token.stages;
        let timed = [Stage::GateUp, Stage::Gate, Stage::Up].map(|stage| !stages.time(stage).is_zero());
        assert_eq!(timed, [!detailed, detailed, detailed]);
        // A gate is above zero now and then, but not always.
        assert!(0 < stages.bytes(Stage::Up) && stages.bytes(Stage::Up) < stages.bytes(Stage::Gate));
        assert_eq!(stages.bytes(Stage::GateUp), 0);
    }
}

#[test]
fn detailed_timing_changes_no_text() {
    let model = fixture(DType::Q4_0, false).open();
    let texts = [false, true].map(|detailed| {
        let mut session = model.session().unwrap();
        session.set_detailed_timing(detailed);
        session.append("Once upon a time").unwrap();
        let mut fork = session.fork().unwrap();
        [&mut session, &mut fork].map(|s| {
            let done = s.generate(GenerateOptions::max_tokens(GEN_TOKENS)).unwrap().complete().unwrap();
            assert_eq!(
                !done.stats.decode_stages.time(Stage::Gate).is_zero(),
                detailed && done.stats.decode_steps > 0
            );
            done.tokens
        })
    });
    assert_eq!(texts[0], texts[1]);
}

#[test]
fn a_model_tells_where_it_skips_neurons() {
    // Type, down by neuron, and what is skipped: up, down.
    for (dtype, by_neuron, up, down) in [
        (DType::Q4_0, false, true, true),
        (DType::Q8_0, false, true, true),
        (DType::F16, false, true, false),
        (DType::Q4_0, true, false, true),
    ] {
        let model = fixture(dtype, by_neuron).open();
        assert_eq!((model.stats().sparse_up, model.stats().sparse_down), (up, down));
        let found: Vec<_> =
            model.expert_kernels().iter().map(|k| (k.part, k.dtype, k.layers, k.sparse)).collect();
        let layers = model.hparams().n_layers;
        let expected = [("gate", false), ("up", up), ("down", down)];
        assert_eq!(found, expected.map(|(part, sparse)| (part, dtype, layers, sparse)));
    }
}

#[test]
fn a_benchmark_can_be_refused_and_stopped() {
    let model = fixture(DType::Q4_0, false).open();
    let options =
        BenchOptions { prompt_tokens: 4, gen_tokens: 4, repetitions: 2, text: None, detailed: false };
    let run = |options: &BenchOptions, go_on: bool| {
        bench::run(&model, options, &CancelFlag::new(), &mut |_, _| go_on)
    };
    let none = BenchOptions { gen_tokens: 0, ..options.clone() };
    assert!(matches!(run(&none, true), Err(Error::InvalidArgument { .. })));
    let long = BenchOptions { prompt_tokens: model.context_length(), ..options.clone() };
    assert!(matches!(run(&long, true), Err(Error::ContextOverflow { .. })));
    assert!(matches!(run(&options, false), Err(Error::Cancelled)));
}

#[test]
fn a_text_is_decoded_as_it_stands() {
    let fixture = fixture(DType::Q4_0, false);
    let floor = Model::plan_for(&fixture.path, &ModelOptions::default()).unwrap().floor;
    // Which experts a small cache misses depends on the tokens.
    let open = || fixture.open_with(|o| (o.memory_budget, o.look_ahead) = (Some(floor), Some(false)));
    let options =
        |text| BenchOptions { prompt_tokens: 4, gen_tokens: 8, repetitions: 1, text, detailed: false };
    let run = |model: &Model, text| bench::run(model, &options(text), &CancelFlag::new(), &mut |_, _| true);
    let misses = |text: &[u32]| {
        let model = open();
        run(&model, Some(text.to_vec())).unwrap();
        model.stats().experts.misses
    };
    let expected = |text: &[u32]| {
        let model = open();
        for _ in ["to warm up", "to measure"] {
            let mut session = model.session().unwrap();
            for part in std::iter::once(&text[..4]).chain(text[4..].chunks(1)) {
                session.append_tokens(part).unwrap();
                session.evaluate().unwrap();
            }
        }
        model.stats().experts.misses
    };
    let texts = [1, 5, 11].map(|step| (0..12).map(|i| 3 + i * step % 40).collect::<Vec<u32>>());
    let found = texts.each_ref().map(|text| misses(text));
    assert_eq!(found, texts.each_ref().map(|text| expected(text)));
    assert!(found.iter().any(|misses| *misses != found[0]), "the texts do not differ: {found:?}");

    for text in [texts[0][..11].to_vec(), vec![u32::MAX; 12]] {
        assert!(matches!(run(&open(), Some(text)), Err(Error::InvalidArgument { .. })));
    }
}

#[test]
fn reading_experts_is_measured_where_not_all_of_them_fit() {
    let fixture = fixture(DType::Q4_0, false);
    assert_eq!(measure(&fixture, 1, false).storage, None);
    let floor = Model::plan_for(&fixture.path, &ModelOptions::default()).unwrap().floor;
    let model = fixture.open_with(|o| o.memory_budget = Some(floor));
    let options = BenchOptions {
        prompt_tokens: 8,
        gen_tokens: GEN_TOKENS,
        repetitions: 2,
        text: None,
        detailed: false,
    };
    let report = bench::run(&model, &options, &CancelFlag::new(), &mut |_, _| true).unwrap();
    let storage = report.storage.expect("not all experts fit");
    assert!(storage.bandwidth > 0.0 && report.read_bytes_per_token > 0, "{storage:?}");
    let limit = storage.bandwidth / report.read_bytes_per_token as f64;
    assert!((storage.limit / limit - 1.0).abs() < 1e-9);
    assert!((storage.limit_share / (report.decode.median / limit) - 1.0).abs() < 1e-9);
    assert!((0.0..=1.0).contains(&report.stall_share), "{report:?}");
    let experts = model.stats().experts;
    assert!(experts.bytes_read > 0 && !experts.reading.is_zero() && experts.read_rate() > 0.0);
}
