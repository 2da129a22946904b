//! Logits against a plain implementation, and against themselves under every choice that must not matter.

mod common;

use common::{Fixture, Random, Spec, VOCAB, distance, naive_logits};
use smallthinker_core::kernels::Kernels;
use smallthinker_core::tensor::DType;
use smallthinker_core::{GenerateOptions, KvType, Model, TokenLogprobs};

fn logits(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut session = model.session().unwrap();
    session.append_tokens(tokens).unwrap();
    session.logits().unwrap()
}

/// The log probabilities of the whole vocabulary at each of ten generated tokens.
fn generated(model: &Model, tokens: &[u32]) -> Vec<TokenLogprobs> {
    let mut session = model.session().unwrap();
    session.append_tokens(tokens).unwrap();
    let mut options = GenerateOptions::max_tokens(10);
    options.logprobs = Some(VOCAB);
    session.generate(options).unwrap().complete().unwrap().logprobs
}

/// Tied or not, window or not, softmax or sigmoid, grouped heads or not: F32 weights, so that only float
/// rounding separates the two.
#[test]
fn every_graph_variant_matches_the_plain_forward_pass() {
    let tokens = Random::new(1).tokens(40);
    for tied in [true, false] {
        for window in [0, 8] {
            for sigmoid in [true, false] {
                for kv_heads in [1, 2, 4] {
                    let spec = Spec { tied, window, sigmoid, kv_heads, ..Default::default() };
                    let fixture = Fixture::new(spec.clone());
                    let model = fixture.open_with(|o| o.kv_type = KvType::F32);
                    let (worst, kl) = distance(
                        &logits(&model, &tokens),
                        &naive_logits(&fixture.path, &spec, &tokens),
                        VOCAB,
                    );
                    assert!(worst < 2e-4, "{spec:?}: differs by {worst}, KL {kl}");
                }
            }
        }
    }
}

#[test]
fn half_precision_cache_stays_close() {
    let tokens = Random::new(2).tokens(60);
    let fixture = Fixture::new(Spec { window: 16, ..Default::default() });
    let (worst, kl) = distance(
        &logits(&fixture.open(), &tokens),
        &naive_logits(&fixture.path, &fixture.spec, &tokens),
        VOCAB,
    );
    assert!(worst < 2e-2 && kl < 1e-5, "differs by {worst}, KL {kl}");
}

/// Of 600 positions, the median and the 95th percentile of the largest difference and of the KL divergence from a cache of half
/// precision. A few positions may have a router near-tie that rounding decides the other way.
fn distances_of_kv(kind: KvType, spec: Spec) -> [(f64, f64); 2] {
    let tokens = Random::new(8).tokens(600);
    let fixture = Fixture::new(Spec { window: 300, ..spec });
    let half: Vec<f64> = logits(&fixture.open(), &tokens).iter().map(|&x| f64::from(x)).collect();
    let coded = logits(&fixture.open_with(|o| o.kv_type = kind), &tokens);
    let by_position = coded.chunks(VOCAB).zip(half.chunks(VOCAB)).map(|(a, b)| distance(a, b, VOCAB));
    let (mut worst, mut kl): (Vec<f64>, Vec<f64>) = by_position.unzip();
    worst.sort_by(f64::total_cmp);
    kl.sort_by(f64::total_cmp);
    [(worst[300], kl[300]), (worst[570], kl[570])]
}

#[test]
fn eight_bit_cache_stays_close_to_that_of_half_precision() {
    let [median, most] = distances_of_kv(KvType::Q8_0, Spec { head_dim: 64, ..Default::default() });
    assert!(median.0 < 1e-2 && median.1 < 1e-6, "median: difference, KL {median:?}");
    assert!(most.0 < 5e-2 && most.1 < 5e-5, "95 %: difference, KL {most:?}");
}

/// Also where heads are rotated in parts and padded (80).
#[test]
fn four_bit_cache_stays_in_sight_of_that_of_half_precision() {
    for head_dim in [64, 80] {
        let [median, most] = distances_of_kv(KvType::Q4_0, Spec { head_dim, ..Default::default() });
        assert!(median.0 < 0.12 && median.1 < 1.5e-4, "{head_dim}, median: difference, KL {median:?}");
        assert!(most.0 < 1.0 && most.1 < 1e-2, "{head_dim}, 95 %: difference, KL {most:?}");
    }
}

/// Many models have elements of keys that are larger than all others.
#[test]
fn four_bit_cache_bears_large_elements_of_keys() {
    let spec = Spec { head_dim: 64, large_key: 20.0, ..Default::default() };
    let [median, _] = distances_of_kv(KvType::Q4_0, spec);
    // Not rotated it would be 1e-2.
    assert!(median.1 < 2e-3, "median: difference, KL {median:?}");
}

/// The reference uses the same dequantized weights; the engine also rounds activations to 8 bits.
#[test]
fn quantized_weights_stay_close_to_their_dequantized_values() {
    let tokens = Random::new(3).tokens(40);
    for dtype in [DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0] {
        for down_by_neuron in [false, true] {
            let spec = Spec { dtype, hidden: 128, ffn: 64, down_by_neuron, ..Default::default() };
            let fixture = Fixture::new(spec);
            let reference = naive_logits(&fixture.path, &fixture.spec, &tokens);
            let ours = logits(&fixture.open(), &tokens);
            let mut per_position: Vec<f64> = (0..tokens.len())
                .map(|i| i * VOCAB..(i + 1) * VOCAB)
                .map(|r| distance(&ours[r.clone()], &reference[r], VOCAB).1)
                .collect();
            per_position.sort_by(f64::total_cmp);
            let (median, worst) = (per_position[tokens.len() / 2], per_position[tokens.len() - 1]);
            // The worst position may have a router near-tie that rounding decides the other way.
            assert!(median < 1e-3, "{dtype} by neuron {down_by_neuron}: median KL {median}, worst {worst}");
        }
    }
}

/// Positions far beyond the window, across several pages of the cache and turns of the ring.
#[test]
fn positions_beyond_the_window_and_the_ring() {
    let tokens = Random::new(4).tokens(900);
    let spec =
        Spec { window: 20, layers: 2, hidden: 32, heads: 2, kv_heads: 1, head_dim: 16, ..Default::default() };
    let fixture = Fixture::new(spec);
    let model = fixture.open_with(|o| (o.kv_type, o.chunk) = (KvType::F32, Some(64)));
    let reference = naive_logits(&fixture.path, &fixture.spec, &tokens);
    let (worst, _) = distance(&logits(&model, &tokens), &reference, VOCAB);
    assert!(worst < 2e-4, "differs by {worst}");
}

/// The target of the design: identical bits, whatever the threads, the prefill chunks and the cache size.
#[test]
fn same_bits_for_any_threads_chunks_and_budget() {
    let tokens = Random::new(5).tokens(150);
    let mixed = (DType::Q4_0, Some(DType::Q8_0));
    for (dtype, down_dtype) in [(DType::F32, None), (DType::Q4_0, None), (DType::Q8_0, None), mixed] {
        for down_by_neuron in [false, true] {
            // More than one tile of outputs, the last one not full.
            let spec =
                Spec { dtype, down_dtype, window: 32, hidden: 160, down_by_neuron, ..Default::default() };
            let fixture = Fixture::new(spec);
            let expected = logits(&fixture.open_with(|o| o.threads = Some(1)), &tokens);
            for threads in [2, 3, 8] {
                let model = fixture.open_with(|o| o.threads = Some(threads));
                assert!(logits(&model, &tokens) == expected, "{dtype}, {threads} threads");
            }
            for chunk in [1, 2, 7, 149] {
                let model = fixture.open_with(|o| o.chunk = Some(chunk));
                assert!(logits(&model, &tokens) == expected, "{dtype}, chunks of {chunk}");
            }
            let plan = Model::plan_for(&fixture.path, &Default::default()).unwrap();
            let model = fixture.open_with(|o| o.memory_budget = Some(plan.floor));
            assert!(!model.plan().fits(), "the floor should be below the whole bank: {plan:?}");
            // The floor has no room for the logits of every position: those of each generated token, then.
            assert_eq!(
                generated(&model, &tokens),
                generated(&fixture.open(), &tokens),
                "{dtype}, at the floor"
            );
            assert!(model.stats().experts.evictions > 0);
        }
    }
}

#[test]
fn every_kernel_set_gives_nearly_the_same() {
    let tokens = Random::new(6).tokens(30);
    let fixture = Fixture::new(Spec { dtype: DType::Q8_0, ..Default::default() });
    let scalar: Vec<f64> = logits(&fixture.open_with(|o| o.kernels = Some("scalar".into())), &tokens)
        .iter()
        .map(|&x| f64::from(x))
        .collect();
    for set in Kernels::available() {
        let model = fixture.open_with(|o| o.kernels = Some(set.name().into()));
        assert_eq!(model.stats().kernels, set.name());
        let mut kl: Vec<f64> = logits(&model, &tokens)
            .chunks(VOCAB)
            .zip(scalar.chunks(VOCAB))
            .map(|(a, b)| distance(a, b, VOCAB).1)
            .collect();
        kl.sort_by(f64::total_cmp);
        assert!(kl[kl.len() / 2] < 1e-6, "{}: {kl:?}", set.name());
    }
}

/// Decode skips inactive neurons and multiplies vector by vector, prefill multiplies everything with many vectors at
/// once, with other instructions: with Q4_0 weights the logits have the same bits, in and between all vector sets.
#[test]
fn sparse_decode_and_dense_prefill_give_the_same_bits_in_every_vector_set() {
    let tokens = Random::new(7).tokens(70);
    for (hidden, ffn) in [(64, 32), (288, 96), (256, 288), (64, 1056)] {
        let spec = Spec { dtype: DType::Q4_0, hidden, ffn, window: 16, ..Default::default() };
        let fixture = Fixture::new(spec);
        let mut first: Option<(&str, Vec<f32>)> = None;
        for set in Kernels::available().iter().filter(|set| set.name() != "scalar") {
            let model = fixture.open_with(|o| o.kernels = Some(set.name().into()));
            let together = logits(&model, &tokens);
            let alone = fixture.open_with(|o| {
                o.kernels = Some(set.name().into());
                o.chunk = Some(1);
            });
            let alone = logits(&alone, &tokens);
            let differ = (0..alone.len()).find(|&i| alone[i].to_bits() != together[i].to_bits());
            assert_eq!(differ, None, "{}, hidden {hidden}: one by one and together", set.name());
            let (name, logits) = first.get_or_insert_with(|| (set.name(), together.clone()));
            let differ = (0..logits.len()).find(|&i| logits[i].to_bits() != together[i].to_bits());
            assert_eq!(differ, None, "{} and {name}, hidden {hidden}", set.name());
        }
    }
}
