//! The tokenizer on a small hand-made vocabulary (256 bytes, 25 merges, 7 special tokens). The expected
//! ids in `testdata/tiny.json` were produced by the Python package `tokenizers` 0.23 with the same
//! vocabulary: `plain` with the added tokens only, `parsed` with the control tokens too.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::gguf::Strings;

fn golden() -> Value {
    serde_json::from_str(include_str!("testdata/tiny.json")).unwrap()
}

fn strings(value: &Value) -> Strings {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub(crate) fn tiny_spec() -> TokenizerSpec {
    let golden = golden();
    let token = |text: &str| {
        let at = golden["tokens"].as_array().unwrap().iter().position(|t| t == text);
        Some(at.unwrap() as u32)
    };
    TokenizerSpec {
        model: "gpt2".into(),
        pre: "qwen2".into(),
        tokens: strings(&golden["tokens"]),
        token_types: ids(&golden["token_types"]).iter().map(|&t| t as i32).collect(),
        merges: strings(&golden["merges"]),
        bos: token("<|endoftext|>"),
        eos: token("<|im_end|>"),
        ..TokenizerSpec::default()
    }
}

/// `strings` with another one at `at`.
fn with(strings: &Strings, at: usize, string: &str) -> Strings {
    strings.iter().enumerate().map(|(i, s)| if i == at { string } else { s }).collect()
}

fn build(spec: TokenizerSpec) -> Result<Tokenizer> {
    Tokenizer::new(spec, Path::new("m.gguf"))
}

pub(crate) fn tiny() -> Tokenizer {
    build(tiny_spec()).unwrap()
}

#[test]
fn ids_are_those_of_the_published_implementation() {
    let tokenizer = tiny();
    for case in golden()["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, Specials::Text).unwrap(), ids(&case["plain"]), "{text:?}");
        assert_eq!(tokenizer.encode(text, Specials::Parse).unwrap(), ids(&case["parsed"]), "{text:?}");
    }
}

#[test]
fn special_tokens() {
    let tokenizer = tiny();
    let end = tokenizer.special_id("<|im_end|>").unwrap();
    let think = tokenizer.special_id("<think>").unwrap();
    assert_eq!(tokenizer.special_id("<|im_end|>x"), None);
    assert_eq!(tokenizer.special_id("hello"), None);
    assert!(tokenizer.is_special(end) && !tokenizer.is_special(think) && !tokenizer.is_special(9999));
    assert_eq!(tokenizer.token_bytes(end), Some(&b"<|im_end|>"[..]));
    let unused = tokenizer.vocab_size() as u32 - 1;
    assert_eq!(tokenizer.token_bytes(unused), Some(&b""[..]));
    assert_eq!(tokenizer.token_bytes(unused + 1), None);
    assert_eq!(tokenizer.decode(&[think, end], false).unwrap(), "<think><|im_end|>");
    assert_eq!(tokenizer.decode(&[think, end], true).unwrap(), "<think>");
    assert!(tokenizer.decode(&[9999], false).unwrap_err().to_string().contains("9999"));
    // The byte 0xe9 alone is half a character.
    assert_eq!(tokenizer.decode(&[0xe9, 0x41], false).unwrap(), "\u{fffd}A");
}

#[test]
fn stop_tokens() {
    let mut spec = tiny_spec();
    let document = spec.bos.unwrap();
    let end = spec.eos.unwrap();
    assert_eq!(tiny().stop_ids(), [document, end]);
    // Not named by a key: only if the chat template, or the default one, writes it.
    spec.eos = None;
    assert_eq!(build(spec.clone()).unwrap().stop_ids(), [document, end]);
    spec.chat_template = Some("{{ messages }}".into());
    assert_eq!(build(spec.clone()).unwrap().stop_ids(), [document]);
    spec.chat_template = Some("<|im_end|>".into());
    assert_eq!(build(spec.clone()).unwrap().stop_ids(), [document, end]);
    (spec.eot, spec.eom, spec.more_eos) = (Some(7), Some(3), vec![5, 7]);
    assert_eq!(build(spec).unwrap().stop_ids(), [3, 5, 7, document, end]);
}

#[test]
fn turn_tokens_of_the_wrong_type_stay_out_of_text() {
    let mut spec = tiny_spec();
    let end = spec.eos.unwrap();
    spec.token_types[end as usize] = 4;
    spec.eos = None;
    let tokenizer = build(spec.clone()).unwrap();
    assert!(!tokenizer.encode("<|im_end|>", Specials::Text).unwrap().contains(&end));
    spec.token_types.clear();
    // Without types, the second filler token is a duplicate.
    spec.tokens = spec.tokens.iter().take(spec.tokens.len() - 1).collect();
    let tokenizer = build(spec).unwrap();
    assert_eq!(tokenizer.encode("<|im_end|>", Specials::Parse).unwrap(), [end]);
}

#[test]
fn a_byte_without_token_is_an_error() {
    let mut spec = tiny_spec();
    spec.tokens = with(&spec.tokens, usize::from(b'q'), "unreachable");
    let tokenizer = build(spec).unwrap();
    assert!(tokenizer.encode("hello", Specials::Text).is_ok());
    assert!(tokenizer.encode("q", Specials::Text).unwrap_err().to_string().contains("0x71"));
}

#[test]
fn damaged_vocabularies_are_errors_that_name_the_key() {
    let check = |key: &str, damage: &dyn Fn(&mut TokenizerSpec)| {
        let mut spec = tiny_spec();
        damage(&mut spec);
        let message = build(spec).unwrap_err().to_string();
        assert!(message.contains("m.gguf") && message.contains(key), "{key}: {message}");
    };
    check("tokenizer.ggml.model", &|s| s.model = "llama".into());
    check("tokenizer.ggml.pre", &|s| s.pre = "default".into());
    check("tokenizer.ggml.tokens", &|s| s.tokens = Strings::default());
    check("tokenizer.ggml.tokens[66]", &|s| s.tokens = with(&s.tokens, 66, "A"));
    check("tokenizer.ggml.token_type", &|s| s.token_types.truncate(9));
    check("tokenizer.ggml.token_type[3]", &|s| s.token_types[3] = 7);
    check("tokenizer.ggml.token_type[3]", &|s| s.token_types[3] = -1);
    check("tokenizer.ggml.merges[2]", &|s| s.merges = with(&s.merges, 2, "he"));
    check("tokenizer.ggml.merges[2]", &|s| s.merges = with(&s.merges, 2, " ll"));
    check("tokenizer.ggml.merges[2]", &|s| s.merges = with(&s.merges, 2, "he l l"));
    check("tokenizer.ggml.merges[2]", &|s| s.merges = with(&s.merges, 2, "he zz"));
    check("tokenizer.ggml.merges[2]", &|s| s.merges = with(&s.merges, 2, "he he"));
    check("tokenizer.ggml.merges[2]", &|s| s.merges = with(&s.merges, 2, s.merges.get(0).unwrap()));
    check("tokenizer.ggml.bos_token_id", &|s| s.bos = Some(9999));
    check("tokenizer.ggml.eot_token_id", &|s| s.eot = Some(u32::MAX));
    check("tokenizer.ggml.eos_token_ids", &|s| s.more_eos = vec![1, 9999]);
    check("tokenizer.ggml.padding_token_id", &|s| s.padding = Some(9999));
}

#[test]
fn merges_are_of_text_tokens_into_text_tokens() {
    let check = |merge: &str, wrong: &str| {
        let mut spec = tiny_spec();
        // With "<|", both halves of a control token's text are text tokens: only what they become is wrong.
        spec.tokens = with(&spec.tokens, usize::from(b'z'), "im_end|>");
        spec.merges = with(&spec.merges, 2, merge);
        let message = build(spec).unwrap_err().to_string();
        let expected = format!("where {wrong:?} is not a text token");
        assert!(message.contains("merges[2]") && message.contains(&expected), "{merge}: {message}");
    };
    check("<| im_end|>", "<|im_end|>");
    check("<|im_end|> e", "<|im_end|>");
    check("e <|im_end|>", "<|im_end|>");
    check("e <|", "e<|");
    // The last token of the vocabulary is an unused one.
    let spec = tiny_spec();
    let unused = spec.tokens.get(spec.tokens.len() - 1).unwrap();
    check(&format!("{unused} e"), unused);
}

proptest! {
    #[test]
    fn any_text_comes_back(text in "([ -~]|<\\|im_end\\|>|<think>|hello|\\PC|[\\n\\r\\t]){0,40}") {
        thread_local!(static TINY: Tokenizer = tiny());
        TINY.with(|tokenizer| {
            for specials in [Specials::Text, Specials::Parse] {
                let ids = tokenizer.encode(&text, specials).unwrap();
                prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.as_str());
                let controls = ids.iter().any(|&id| tokenizer.is_special(id));
                prop_assert_eq!(controls, specials == Specials::Parse && text.contains("<|im_end|>"));
            }
            Ok(())
        })?;
    }

    #[test]
    fn random_vocabularies_never_panic(
        tokens in prop::collection::vec("[ab<|>Ġ]{0,3}", 0..12),
        merges in prop::collection::vec("[ab<|>Ġ ]{0,4}", 0..6),
        token_types in prop::collection::vec(-1i32..8, 0..12),
        eos in prop::option::of(0u32..14),
        text in "[ab<|> ]{0,12}",
    ) {
        let (model, pre) = ("gpt2".to_owned(), "qwen2".to_owned());
        let (tokens, merges) = (tokens.iter().collect(), merges.iter().collect());
        let spec = TokenizerSpec { model, pre, tokens, merges, token_types, eos, ..TokenizerSpec::default() };
        if let Ok(tokenizer) = build(spec) {
            let _ = tokenizer.encode(&text, Specials::Parse);
        }
    }
}
