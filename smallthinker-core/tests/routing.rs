//! Recorded routing: what the engine did is what the replay says, and recording changes nothing.

mod common;

use common::{Fixture, Random, Spec};
use smallthinker_core::routing::{self, PassKind, RecordOptions, Replay, ReplayPolicy};
use smallthinker_core::tensor::DType;
use smallthinker_core::{CachePolicy, CancelFlag, Error, GenerateOptions, Model, Plan, Session};

fn fixture() -> Fixture {
    Fixture::new(Spec { layers: 6, hidden: 64, experts: 12, top_k: 3, ..Spec::default() })
}

/// The model with the least budget that holds `slots` experts.
fn open(fixture: &Fixture, policy: CachePolicy, slots: u64, chunk: Option<usize>) -> Model {
    fixture.open_with(|o| {
        (o.cache_policy, o.chunk, o.context_length) = (policy, chunk, Some(128));
        // Reads for guesses are not part of a trace.
        o.look_ahead = Some(false);
        let Plan { floor, expert_slot, .. } = Model::plan_for(&fixture.path, o).unwrap();
        let mut budgets = (0..).map(|i| floor + i * expert_slot / 2);
        o.memory_budget = budgets.find(|budget| {
            o.memory_budget = Some(*budget);
            Model::plan_for(&fixture.path, o).unwrap().expert_slots >= slots
        });
    })
}

fn chat(session: &mut Session, random: &mut Random) -> Vec<u32> {
    for (given, written) in [(20, 30), (1, 5), (3, 40)] {
        session.append_tokens(&random.tokens(given)).unwrap();
        let mut options = GenerateOptions::max_tokens(written);
        options.ignore_stop_tokens = true;
        session.generate(options).unwrap().complete().unwrap();
    }
    session.tokens().to_vec()
}

fn totals(replay: &Replay) -> (u64, u64, u64) {
    let sum = |f: fn(&routing::Accesses) -> u64| f(&replay.prompt) + f(&replay.decode);
    (sum(|a| a.hits), sum(|a| a.misses), sum(|a| a.bytes_read))
}

#[test]
fn a_replay_counts_what_the_cache_did() {
    counts_agree(&fixture());
}

/// Prompts go through several experts of these types at a time.
#[test]
fn a_replay_counts_what_the_cache_did_for_packed_experts() {
    let spec = Spec { layers: 6, hidden: 64, experts: 12, top_k: 3, dtype: DType::Q4_0, ..Spec::default() };
    counts_agree(&Fixture::new(spec));
}

fn counts_agree(fixture: &Fixture) {
    let mut rates = Vec::new();
    for policy in CachePolicy::ALL {
        for (slots, chunk) in [(7, None), (20, Some(1)), (20, Some(4)), (50, None)] {
            let model = open(fixture, policy, slots, chunk);
            let slots = model.plan().expert_slots as usize;
            assert!(slots < 72, "all experts fit");
            let mut session = model.session().unwrap();
            session.record_routing().unwrap();
            chat(&mut session, &mut Random::new(5));
            let trace = session.take_routing().unwrap();
            assert_eq!(trace.tokens(PassKind::Decode), 29 + 4 + 39);
            let stats = model.stats().experts;
            let replay = routing::replay(&trace, ReplayPolicy::Cache(policy), slots).unwrap();
            let found = (stats.hits, stats.misses, stats.bytes_read);
            assert_eq!(totals(&replay), found, "{policy}, {slots} slots, chunk {chunk:?}");
            assert!(0 < replay.decode.misses, "{replay:?}");
            rates.push(replay.hit_rate());
        }
    }
    rates.dedup();
    assert_eq!(rates.len(), 8, "slots and policies make a difference");
}

#[test]
fn policies_and_recording_change_no_token() {
    let fixture = fixture();
    let expected = chat(&mut fixture.open().session().unwrap(), &mut Random::new(8));
    for policy in CachePolicy::ALL {
        let model = open(&fixture, policy, 14, None);
        assert_eq!(model.stats().cache_policy, policy);
        let mut session = model.session().unwrap();
        session.record_routing().unwrap();
        assert_eq!(chat(&mut session, &mut Random::new(8)), expected);
    }
}

#[test]
fn a_text_is_recorded_as_prompt_and_as_decoded_tokens() {
    let model = fixture().open();
    let text = "once upon a time";
    let n = text.len(); // a token per byte
    let record = |prompt_tokens, max_tokens| {
        let options = RecordOptions { prompt_tokens, max_tokens, ..RecordOptions::default() };
        routing::record(&model, text, options, &CancelFlag::new()).unwrap()
    };
    for (prompt, max_tokens, kinds) in [
        (None, 0, [n, 0]),
        (Some(1000), 0, [n, 0]),
        (Some(4), 0, [4, n - 4]),
        (None, 9, [n, 9]),
        (Some(4), 9, [5, n - 5 + 9]),
    ] {
        let trace = record(prompt, max_tokens);
        let found = [PassKind::Prompt, PassKind::Decode].map(|kind| trace.tokens(kind));
        assert!(found[0] == kinds[0] && found[1] <= kinds[1], "{found:?}, {kinds:?}");
        assert!(found[1] == kinds[1] || max_tokens > 0, "only a stop token ends it before");
        assert_eq!(trace.shape().model, "model.gguf");
    }
    // The same tokens choose the same experts, one by one or together.
    let flat = |trace: &routing::Trace| -> Vec<Vec<u32>> {
        let mut layers = vec![Vec::new(); trace.shape().layers()];
        let passes = trace.passes().iter().flat_map(|p| p.layers(trace.shape()).enumerate());
        passes.for_each(|(layer, choices)| layers[layer].extend_from_slice(choices));
        layers
    };
    assert_eq!(flat(&record(None, 0)), flat(&record(Some(3), 0)));
    let mut session = model.session().unwrap();
    assert!(session.take_routing().is_none());
    session.record_routing().unwrap();
    assert!(session.fork().unwrap().take_routing().is_none(), "a fork does not go on with a recording");
}

#[test]
fn a_recording_can_be_refused_and_cancelled() {
    let model = fixture().open();
    let cancelled = CancelFlag::new();
    cancelled.cancel();
    let none = RecordOptions { prompt_tokens: Some(0), ..RecordOptions::default() };
    assert!(matches!(
        routing::record(&model, "x", none, &CancelFlag::new()),
        Err(Error::InvalidArgument { .. })
    ));
    let long = RecordOptions { max_tokens: model.context_length(), ..RecordOptions::default() };
    assert!(matches!(
        routing::record(&model, "x", long, &CancelFlag::new()),
        Err(Error::ContextOverflow { .. })
    ));
    for max_tokens in [0, 3] {
        let options = RecordOptions { max_tokens, ..RecordOptions::default() };
        assert!(matches!(routing::record(&model, "x", options, &cancelled), Err(Error::Cancelled)));
    }
}
