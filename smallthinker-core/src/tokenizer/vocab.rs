//! The checked vocabulary: kinds and bytes of its tokens, built from a [`TokenizerSpec`].

use std::path::Path;

use super::TokenizerSpec;
use super::alphabet::Alphabet;
use crate::error::{Error, Result};

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text, in the byte-level alphabet.
    Text,
    /// A piece of text taken whole before BPE, written as it is (`<think>`).
    Added,
    /// A mark of structure that is not text (`<|im_end|>`).
    Control,
    /// Fills the vocabulary up; text never becomes it, and it becomes no text.
    Unused,
}

/// The kind of every token, after the checks that need nothing else.
pub(super) fn kinds(spec: &TokenizerSpec, path: &Path) -> Result<Vec<Kind>> {
    let n = spec.tokens.len();
    if n == 0 || u32::try_from(n).is_err() {
        return Err(Error::malformed(path, TOKENS, format!("{n} tokens"), "1 to 4294967295 tokens"));
    }
    let types = &spec.token_types;
    if !types.is_empty() && types.len() != n {
        let found = format!("{} values", types.len());
        return Err(Error::malformed(path, TYPES, found, format!("{n} values, one per token")));
    }
    let mut kinds = Vec::with_capacity(n);
    for (id, text) in spec.tokens.iter().enumerate() {
        // Some converters mark turn tokens as user defined, or write no types; their form tells.
        let structural = text.len() > 4 && text.starts_with("<|") && text.ends_with("|>");
        kinds.push(match types.get(id).copied() {
            Some(4) | None if structural => Kind::Control,
            Some(0 | 1 | 6) | None => Kind::Text,
            Some(2 | 3) => Kind::Control,
            Some(4) => Kind::Added,
            Some(5) => Kind::Unused,
            Some(other) => {
                return Err(Error::malformed(path, format!("{TYPES}[{id}]"), other, "0 to 6"));
            }
        });
    }
    for (key, id) in spec.named_ids() {
        let (Some(kind), Some(text)) = (kinds.get_mut(id as usize), spec.tokens.get(id as usize)) else {
            return Err(Error::malformed(path, key, id, format!("ids below {n}, the number of tokens")));
        };
        // A token with such a role is not text, unless it is an ordinary piece of text doing double duty.
        if *kind != Kind::Text || (text.starts_with('<') && text.ends_with('>') && text.len() > 2) {
            *kind = Kind::Control;
        }
    }
    Ok(kinds)
}

/// The bytes of all tokens, one after the other, and where each ends.
#[derive(Debug)]
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl TokenBytes {
    pub(super) fn new(
        spec: &TokenizerSpec,
        kinds: &[Kind],
        alphabet: &Alphabet,
        path: &Path,
    ) -> Result<Self> {
        // In the byte-level alphabet, text is no shorter than its bytes.
        let bytes = Vec::with_capacity(spec.tokens.text_bytes());
        let mut table = TokenBytes { bytes, ends: Vec::with_capacity(kinds.len()) };
        for (text, kind) in spec.tokens.iter().zip(kinds) {
            match kind {
                Kind::Text => alphabet.append_bytes(text, &mut table.bytes),
                Kind::Added | Kind::Control => table.bytes.extend_from_slice(text.as_bytes()),
                Kind::Unused => {}
            }
            let end = u32::try_from(table.bytes.len());
            table.ends.push(end.map_err(|_| Error::malformed(path, TOKENS, "over 4 GiB of text", "less"))?);
        }
        table.bytes.shrink_to_fit();
        Ok(table)
    }

    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 { 0 } else { *self.ends.get(id - 1)? as usize };
        self.bytes.get(start..end)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>()
    }
}
