//! Long texts through the cache: pages, spans and windows must not show in any result.

mod common;

use common::{Fixture, Random, Spec, VOCAB, distance, naive_logits};
use smallthinker_core::{GenerateOptions, KvType, Model, Session, TokenLogprobs};

/// Small, with a window that begins inside pages and spans.
fn spec(window: usize) -> Spec {
    Spec {
        window,
        layers: 5,
        hidden: 32,
        heads: 6,
        kv_heads: 2,
        head_dim: 16,
        context: 2048,
        ..Default::default()
    }
}

fn logits(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut session = model.session().unwrap();
    session.append_tokens(tokens).unwrap();
    session.logits().unwrap()
}

#[test]
fn long_texts_match_the_plain_forward_pass() {
    let tokens = Random::new(11).tokens(1100);
    for window in [0, 300, 512] {
        let fixture = Fixture::new(Spec { layers: 2, ..spec(window) });
        let model = fixture.open_with(|o| o.kv_type = KvType::F32);
        let reference = naive_logits(&fixture.path, &fixture.spec, &tokens);
        let (worst, _) = distance(&logits(&model, &tokens), &reference, VOCAB);
        assert!(worst < 2e-4, "window {window}: differs by {worst}");
    }
}

/// Chunks of up to 16 tokens are shared out by spans of positions, longer ones by tokens.
#[test]
fn same_bits_for_decode_and_prefill_for_any_chunks_and_threads() {
    let tokens = Random::new(12).tokens(1100);
    let kinds = [(0, KvType::F16), (300, KvType::Q8_0), (257, KvType::F32), (280, KvType::Q4_0)];
    for (window, kv) in kinds {
        let fixture = Fixture::new(spec(window));
        let expected = logits(&fixture.open_with(|o| (o.kv_type, o.threads) = (kv, Some(1))), &tokens);
        for (chunk, threads) in [(1, 2), (1, 5), (5, 2), (16, 3), (17, 1), (33, 8), (300, 2), (1100, 3)] {
            let model =
                fixture.open_with(|o| (o.kv_type, o.chunk, o.threads) = (kv, Some(chunk), Some(threads)));
            let got = logits(&model, &tokens);
            let first = got.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(
                first.map(|i| i / VOCAB),
                None,
                "window {window}, chunks of {chunk}, {threads} threads"
            );
        }
    }
}

/// Log probabilities of the whole vocabulary after `tokens` were added.
fn next(session: &mut Session, tokens: &[u32]) -> Vec<TokenLogprobs> {
    session.append_tokens(tokens).unwrap();
    let len = session.tokens().len();
    let mut options = GenerateOptions::max_tokens(1);
    options.ignore_stop_tokens = true;
    options.logprobs = Some(VOCAB);
    let logprobs = session.generate(options).unwrap().complete().unwrap().logprobs;
    session.rewind(len).unwrap();
    logprobs
}

/// A fork copies the page that both would write; a rewound session writes over what it held.
#[test]
fn forks_and_rewinds_at_the_edges_of_pages() {
    let text = Random::new(13).tokens(800);
    for (window, kv) in [(0, KvType::F16), (300, KvType::F16), (300, KvType::Q8_0), (0, KvType::Q4_0)] {
        let model = Fixture::new(spec(window)).open_with(|o| (o.kv_type, o.chunk) = (kv, Some(100)));
        for at in [255, 256, 257, 511, 512, 513, 700] {
            let mut original = model.session().unwrap();
            next(&mut original, &text[..at]);
            let mut fork = original.fork().unwrap();
            let one = next(&mut original, &text[at..at + 40]);
            let other: Vec<u32> = text[at..at + 40].iter().rev().copied().collect();
            let two = next(&mut fork, &other);
            let mut fresh = model.session().unwrap();
            assert!(next(&mut fresh, &text[..at + 40]) == one, "window {window}, {at}: the original");
            let mut fresh = model.session().unwrap();
            next(&mut fresh, &text[..at]);
            assert!(next(&mut fresh, &other) == two, "window {window}, {at}: the fork");
            fork.rewind(at).unwrap();
            assert!(next(&mut fork, &text[at..at + 40]) == one, "window {window}, {at}: the fork, rewound");
        }
    }
}
