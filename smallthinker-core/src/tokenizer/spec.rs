//! What a file says about its tokenizer.

use super::vocab::{MERGES, TOKENS, TYPES};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Strings};

/// The metadata a [`Tokenizer`](super::Tokenizer) is made from, named after the keys
/// `tokenizer.ggml.*` of a GGUF file.
#[derive(Debug, Clone, Default)]
pub struct TokenizerSpec {
    /// `model`: the algorithm; `gpt2` (byte-level BPE) is the one supported.
    pub model: String,
    /// `pre`: how text is cut before BPE; `qwen2` is the one supported.
    pub pre: String,
    /// `tokens`: the text of each token, in the byte-level alphabet; the index is the id.
    pub tokens: Strings,
    /// `token_type` of each token: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    /// Empty means all normal.
    pub token_types: Vec<i32>,
    /// `merges`, in order of rank: two tokens separated by a space.
    pub merges: Strings,
    /// `bos_token_id`: begins a sequence.
    pub bos: Option<u32>,
    /// `eos_token_id`: ends a sequence.
    pub eos: Option<u32>,
    /// `eot_token_id`: ends a turn of a conversation.
    pub eot: Option<u32>,
    /// `eom_token_id`: ends a message inside a turn.
    pub eom: Option<u32>,
    /// `eos_token_ids`: more tokens that end a sequence.
    pub more_eos: Vec<u32>,
    /// `padding_token_id`.
    pub padding: Option<u32>,
    /// `add_bos_token`: whether the model expects BOS before every text.
    pub add_bos: bool,
    /// `tokenizer.chat_template`, a Jinja template.
    pub chat_template: Option<String>,
}

impl TokenizerSpec {
    /// Reads the keys of an open file. A file without `tokenizer.ggml.pre` is taken for `qwen2`, the
    /// only kind SmallThinker models have, with a warning.
    ///
    /// # Errors
    /// `tokenizer.ggml.model` or `tokenizer.ggml.tokens` is missing, or a key has the wrong type.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let require = |key: &str, allowed: &str| Error::malformed(gguf.path(), key, "no such key", allowed);
        let owned = |key: &str| -> Result<Option<String>> { Ok(gguf.get_str(key)?.map(str::to_owned)) };
        let model_key = "tokenizer.ggml.model";
        let pre = owned("tokenizer.ggml.pre")?.unwrap_or_else(|| {
            log::warn!("{}: no tokenizer.ggml.pre, taking qwen2", gguf.path().display());
            "qwen2".to_owned()
        });
        let tokens = gguf.get_str_array(TOKENS)?;
        Ok(TokenizerSpec {
            model: owned(model_key)?.ok_or_else(|| require(model_key, "gpt2"))?,
            pre,
            tokens: tokens.ok_or_else(|| require(TOKENS, "array of string"))?.clone(),
            token_types: gguf.get_i32_array(TYPES)?.unwrap_or_default(),
            merges: gguf.get_str_array(MERGES)?.cloned().unwrap_or_default(),
            bos: gguf.get_u32("tokenizer.ggml.bos_token_id")?,
            eos: gguf.get_u32("tokenizer.ggml.eos_token_id")?,
            eot: gguf.get_u32("tokenizer.ggml.eot_token_id")?,
            eom: gguf.get_u32("tokenizer.ggml.eom_token_id")?,
            more_eos: gguf.get_u32_array("tokenizer.ggml.eos_token_ids")?.unwrap_or_default(),
            padding: gguf.get_u32("tokenizer.ggml.padding_token_id")?,
            add_bos: gguf.get_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(false),
            chat_template: owned("tokenizer.chat_template")?,
        })
    }

    /// Lets go of the vocabulary's arrays in a file's metadata: megabytes that no one asks for once there is a tokenizer.
    pub(crate) fn forget_arrays(gguf: &mut Gguf) {
        [TOKENS, TYPES, MERGES].iter().for_each(|key| gguf.forget(key));
    }

    /// Every id that a key names, with the key.
    pub(super) fn named_ids(&self) -> Vec<(&'static str, u32)> {
        let single = [
            ("tokenizer.ggml.bos_token_id", self.bos),
            ("tokenizer.ggml.eos_token_id", self.eos),
            ("tokenizer.ggml.eot_token_id", self.eot),
            ("tokenizer.ggml.eom_token_id", self.eom),
            ("tokenizer.ggml.padding_token_id", self.padding),
        ];
        let single = single.into_iter().filter_map(|(key, id)| Some((key, id?)));
        single.chain(self.more_eos.iter().map(|&id| ("tokenizer.ggml.eos_token_ids", id))).collect()
    }
}
