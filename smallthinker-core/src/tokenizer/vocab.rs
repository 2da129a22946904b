//! The checked vocabulary: kinds, bytes and the BPE model, built from a [`TokenizerSpec`].

use std::collections::{HashMap, HashSet};
use std::path::Path;

use tokenizers::models::bpe;

use super::TokenizerSpec;
use super::alphabet::Alphabet;
use crate::error::{Error, Result};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

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
    pub(super) fn new(spec: &TokenizerSpec, kinds: &[Kind], path: &Path) -> Result<Self> {
        let alphabet = Alphabet::new();
        let mut table = TokenBytes { bytes: Vec::new(), ends: Vec::with_capacity(kinds.len()) };
        for (text, kind) in spec.tokens.iter().zip(kinds) {
            match kind {
                Kind::Text => alphabet.append_bytes(text, &mut table.bytes),
                Kind::Added | Kind::Control => table.bytes.extend_from_slice(text.as_bytes()),
                Kind::Unused => {}
            }
            let end = u32::try_from(table.bytes.len());
            table.ends.push(end.map_err(|_| Error::malformed(path, TOKENS, "over 4 GiB of text", "less"))?);
        }
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

/// The BPE model of the text tokens. Control and unused tokens are not in it, so that no sequence of
/// merges can produce one.
pub(super) fn bpe_model(spec: &TokenizerSpec, kinds: &[Kind], path: &Path) -> Result<bpe::BPE> {
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(kinds.len());
    let mut vocab = bpe::Vocab::default();
    for (id, (text, kind)) in spec.tokens.iter().zip(kinds).enumerate() {
        if *kind == Kind::Unused {
            continue;
        }
        if let Some(first) = seen.insert(text, id) {
            let found = format!("{text:?}, the same as token {first}");
            return Err(Error::malformed(path, format!("{TOKENS}[{id}]"), found, "distinct tokens"));
        }
        if *kind != Kind::Control {
            vocab.insert(text.clone(), id as u32);
        }
    }
    let mut pairs: HashSet<&str> = HashSet::with_capacity(spec.merges.len());
    let mut merges = Vec::with_capacity(spec.merges.len());
    for (rank, merge) in spec.merges.iter().enumerate() {
        let malformed = |found: String, allowed: &str| {
            Err(Error::malformed(path, format!("{MERGES}[{rank}]"), found, allowed))
        };
        let parts = merge.split_once(' ');
        let Some((left, right)) = parts.filter(|(l, r)| !l.is_empty() && !r.is_empty() && !r.contains(' '))
        else {
            return malformed(format!("{merge:?}"), "two tokens separated by one space");
        };
        let product = format!("{left}{right}");
        if let Some(unknown) = [left, right, &product].into_iter().find(|t| !vocab.contains_key(*t)) {
            return malformed(format!("{unknown:?} in {merge:?}"), "text tokens of tokenizer.ggml.tokens");
        }
        if !pairs.insert(merge) {
            return malformed(format!("{merge:?} again"), "distinct merges");
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    bpe::BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|e| Error::malformed(path, MERGES, e, "merges of text tokens"))
}
