//! The tokenizer: `tokenizer.json`, `tokenizer_config.json` and the chat template become metadata.
//!
//! GGUF names a pre-tokenizer instead of spelling it out, so a `tokenizer.json` that does anything else than
//! what the name `qwen2` stands for is refused by field. (The NFC normalization of Qwen2 has no place in
//! GGUF; text that is not NFC tokenizes differently there, as in every engine that reads such files.)

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value as Json;

use super::config::Config;
use super::json::{self, Object};
use crate::error::{Error, Result};
use crate::gguf::{Array, Value};

const MAX_TOKENIZER: u64 = 256 << 20;
const MAX_CONFIG: u64 = 64 << 20;
const MAX_TEMPLATE: u64 = 4 << 20;

/// The regular expression that the pre-tokenizer name `qwen2` stands for.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const END_OF_TURN: &str = "<|im_end|>";

// Token types of GGUF.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The `tokenizer.*` metadata of the checkpoint in `dir`.
pub(super) fn metadata(dir: &Path, config: &Config) -> Result<Vec<(&'static str, Value)>> {
    let json = Object::read(&dir.join("tokenizer.json"), MAX_TOKENIZER)?;
    check_pipeline(&json)?;
    let vocab = Vocab::read(&json, config.vocab)?;
    let merges = merges(&json, &vocab)?;
    let settings_path = dir.join("tokenizer_config.json");
    let settings =
        if settings_path.exists() { Some(Object::read(&settings_path, MAX_CONFIG)?) } else { None };
    let special = |name: &str| special_id(settings.as_ref(), name, &vocab);

    let bos = special("bos_token")?.or(config.bos);
    let pad = special("pad_token")?.or(config.pad);
    let eos = special("eos_token")?.or(config.eos.first().copied());
    let eot = vocab.added.get(END_OF_TURN).copied();
    let add_bos = settings.as_ref().map_or(Ok(false), |s| s.bool_or("add_bos_token", false))?;
    if add_bos && bos.is_none() {
        return Err(Error::malformed(&settings_path, "add_bos_token", "true without a bos_token", "false"));
    }
    let mut more_eos: Vec<u32> =
        config.eos.iter().copied().filter(|&id| Some(id) != eos && Some(id) != eot).collect();
    more_eos.dedup();

    let mut out = vec![
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("qwen2".into())),
        ("tokenizer.ggml.tokens", Value::Array(Array::String(vocab.tokens.iter().collect()))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(vocab.types))),
        ("tokenizer.ggml.merges", Value::Array(Array::String(merges.iter().collect()))),
    ];
    for (key, id) in [
        ("tokenizer.ggml.bos_token_id", bos),
        ("tokenizer.ggml.eos_token_id", eos),
        ("tokenizer.ggml.eot_token_id", eot),
        ("tokenizer.ggml.padding_token_id", pad),
    ] {
        out.extend(id.map(|id| (key, Value::U32(id))));
    }
    if !more_eos.is_empty() {
        out.push(("tokenizer.ggml.eos_token_ids", Value::Array(Array::U32(more_eos))));
    }
    out.push(("tokenizer.ggml.add_bos_token", Value::Bool(add_bos)));
    out.extend(chat_template(dir, settings.as_ref())?.map(|t| ("tokenizer.chat_template", Value::String(t))));
    Ok(out)
}

/// Checks that text goes through byte-level BPE after the `qwen2` split, and through nothing else.
fn check_pipeline(json: &Object) -> Result<()> {
    let at = |path: &str| {
        json.map.get(path.split('/').next().unwrap_or("")).and_then(|v| match path.split_once('/') {
            Some((_, rest)) => v.pointer(&format!("/{rest}")),
            None => Some(v),
        })
    };
    let off =
        |v: Option<&Json>| v.is_none_or(|v| v.is_null() || *v == Json::Bool(false) || v == "" || *v == 0.0);
    let refuse = |field: &str, supported: &str| Err(json.refuse(field, at(field), supported));

    let normalizer = at("normalizer/type").or(at("normalizer").filter(|v| !v.is_null()));
    if normalizer.is_some_and(|t| t != "NFC") {
        return refuse("normalizer", "null or NFC");
    }
    if at("pre_tokenizer/type").is_none_or(|t| t != "Sequence")
        || at("pre_tokenizer/pretokenizers").and_then(Json::as_array).is_none_or(|l| l.len() != 2)
        || at("pre_tokenizer/pretokenizers/0/type").is_none_or(|t| t != "Split")
        || at("pre_tokenizer/pretokenizers/1/type").is_none_or(|t| t != "ByteLevel")
    {
        return refuse("pre_tokenizer", "a sequence of Split and ByteLevel");
    }
    if at("pre_tokenizer/pretokenizers/0/pattern/Regex").is_none_or(|r| r != QWEN2_SPLIT) {
        return refuse("pre_tokenizer/pretokenizers/0/pattern", QWEN2_SPLIT);
    }
    if at("pre_tokenizer/pretokenizers/0/behavior").is_none_or(|b| b != "Isolated") {
        return refuse("pre_tokenizer/pretokenizers/0/behavior", "Isolated");
    }
    for field in [
        "pre_tokenizer/pretokenizers/0/invert",
        "pre_tokenizer/pretokenizers/1/add_prefix_space",
        "pre_tokenizer/pretokenizers/1/use_regex",
        "model/dropout",
        "model/unk_token",
        "model/continuing_subword_prefix",
        "model/end_of_word_suffix",
        "model/byte_fallback",
        "model/ignore_merges",
    ] {
        if !off(at(field)) {
            return refuse(field, "null or false");
        }
    }
    // Here a missing field means true.
    for field in ["pre_tokenizer/pretokenizers/1/add_prefix_space", "pre_tokenizer/pretokenizers/1/use_regex"]
    {
        if at(field).is_none() {
            return refuse(field, "false");
        }
    }
    if at("post_processor").is_some_and(|p| !p.is_null() && p.get("type").is_none_or(|t| t != "ByteLevel")) {
        return refuse("post_processor", "null or ByteLevel");
    }
    if at("model/type").is_none_or(|t| t != "BPE") {
        return refuse("model/type", "BPE");
    }
    Ok(())
}

struct Vocab {
    /// Text of each id, `vocab_size` of them.
    tokens: Vec<String>,
    types: Vec<i32>,
    /// Ids of the tokens that BPE works with.
    ids: HashMap<String, u32>,
    /// Ids of the tokens that are matched before BPE.
    added: HashMap<String, u32>,
}

impl Vocab {
    fn read(json: &Object, size: u32) -> Result<Vocab> {
        let Some(vocab) = json.map.get("model").and_then(|m| m.get("vocab")).and_then(Json::as_object) else {
            return Err(json.wrong("model/vocab", None, "an object of tokens and ids".into()));
        };
        let mut slots: HashMap<u32, (String, i32)> = HashMap::with_capacity(vocab.len());
        let mut ids = HashMap::with_capacity(vocab.len());
        for (token, id) in vocab {
            let id = check_id(json, &format!("model/vocab/{token}"), Some(id), size)?;
            if let Some((other, _)) = slots.insert(id, (token.clone(), NORMAL)) {
                let allowed = format!("another id than that of {other:?}");
                return Err(Error::malformed(&json.path, format!("model/vocab/{token}"), id, allowed));
            }
            ids.insert(token.clone(), id);
        }
        let mut added = HashMap::new();
        for (i, entry) in
            json.map.get("added_tokens").and_then(Json::as_array).into_iter().flatten().enumerate()
        {
            let field = format!("added_tokens/{i}");
            let id = check_id(json, &format!("{field}/id"), entry.get("id"), size)?;
            let Some(text) = entry.get("content").and_then(Json::as_str) else {
                return Err(json.wrong(&format!("{field}/content"), entry.get("content"), "a string".into()));
            };
            for flag in ["single_word", "lstrip", "rstrip"] {
                if entry.get(flag) == Some(&Json::Bool(true)) {
                    return Err(json.refuse(&format!("{field}/{flag}"), entry.get(flag), "false"));
                }
            }
            let kind = if entry.get("special") == Some(&Json::Bool(true)) { CONTROL } else { USER_DEFINED };
            let before = slots.insert(id, (text.to_owned(), kind)).map(|(t, _)| t);
            if before.as_deref().is_some_and(|t| t != text) || added.insert(text.to_owned(), id).is_some() {
                return Err(json.wrong(
                    &field,
                    Some(entry),
                    "an id and a text that no other token has".into(),
                ));
            }
        }
        let (tokens, types) =
            (0..size).map(|id| slots.remove(&id).unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED))).unzip();
        Ok(Vocab { tokens, types, ids, added })
    }
}

fn check_id(json: &Object, field: &str, id: Option<&Json>, size: u32) -> Result<u32> {
    let number = id.and_then(Json::as_u64).and_then(|n| u32::try_from(n).ok()).filter(|&n| n < size);
    number.ok_or_else(|| json.wrong(field, id, format!("an id below the vocab_size of config.json, {size}")))
}

/// The merges in the form `left right`, each checked against the vocabulary.
fn merges(json: &Object, vocab: &Vocab) -> Result<Vec<String>> {
    let Some(list) = json.map.get("model").and_then(|m| m.get("merges")).and_then(Json::as_array) else {
        return Err(json.wrong("model/merges", None, "a list".into()));
    };
    let known = |token: &str| vocab.ids.contains_key(token);
    let pair = |merge: &Json| -> Option<String> {
        let (left, right) = match merge {
            Json::String(text) => text.split_once(' ')?,
            Json::Array(two) => match two.as_slice() {
                [left, right] => (left.as_str()?, right.as_str()?),
                _ => return None,
            },
            _ => return None,
        };
        // Byte-level tokens hold no space, so a token of the vocabulary with one could not be written.
        let valid = !left.contains(' ') && !right.contains(' ') && known(left) && known(right);
        (valid && known(&format!("{left}{right}"))).then(|| format!("{left} {right}"))
    };
    list.iter()
        .enumerate()
        .map(|(i, merge)| {
            let allowed = "two tokens of the vocabulary that join to a third";
            pair(merge).ok_or_else(|| json.wrong(&format!("model/merges/{i}"), Some(merge), allowed.into()))
        })
        .collect()
}

/// The id of a special token that `tokenizer_config.json` names, as a string or as an object with `content`.
fn special_id(settings: Option<&Object>, name: &str, vocab: &Vocab) -> Result<Option<u32>> {
    let Some((settings, value)) = settings.and_then(|s| Some((s, s.get(name)?))) else { return Ok(None) };
    let text = value.as_str().or_else(|| value.get("content").and_then(Json::as_str));
    match text.and_then(|t| vocab.added.get(t).or_else(|| vocab.ids.get(t))) {
        Some(&id) => Ok(Some(id)),
        None => Err(settings.wrong(name, Some(value), "a token of tokenizer.json".into())),
    }
}

/// The chat template: a file of its own, or a field of `tokenizer_config.json`.
fn chat_template(dir: &Path, settings: Option<&Object>) -> Result<Option<String>> {
    let path = dir.join("chat_template.jinja");
    if path.exists() {
        let text = String::from_utf8(json::read_bounded(&path, MAX_TEMPLATE)?);
        return text.map(Some).map_err(|e| Error::malformed(&path, "text", e, "UTF-8"));
    }
    let Some((settings, value)) = settings.and_then(|s| Some((s, s.get("chat_template")?))) else {
        return Ok(None);
    };
    // A list has templates for several purposes by name.
    let named = value.as_array().and_then(|list| {
        list.iter().find(|t| t.get("name").is_some_and(|n| n == "default")).and_then(|t| t.get("template"))
    });
    match named.unwrap_or(value) {
        Json::String(text) => Ok(Some(text.clone())),
        _ => Err(settings.wrong(
            "chat_template",
            Some(value),
            "a string, or a list with a default template".into(),
        )),
    }
}
