//! Text to tokens and back: byte-level BPE with the vocabulary and merges of a GGUF file.
//!
//! [`Tokenizer::encode`] cuts special tokens out of the text, splits the rest into words (`split`),
//! and merges the bytes of each word (`bpe`). Text is taken byte for byte, without Unicode normalisation, so decoding gives it back.
//!
//! Special tokens are of two kinds. *Control* tokens (types 2 and 3, tokens written `<...>`
//! that a key such as `eos_token_id` names, and user-defined ones written `<|...|>`) give a conversation its structure;
//! text becomes one only where the caller asks for it with [`Specials::Parse`]. *Added* tokens (the other
//! ones of type 4, such as `<think>`) are ordinary text with a token of their own; they are always
//! recognised, as llama.cpp does.

mod alphabet;
mod bpe;
mod spec;
mod specials;
mod split;
mod stop;
mod stream;
mod vocab;

pub use spec::TokenizerSpec;
pub use stop::StopMatcher;
pub use stream::DecodeStream;

use std::path::Path;

use crate::error::{Error, Result};
use alphabet::Alphabet;
use bpe::Bpe;
use specials::SpecialSet;
use split::Qwen2Splitter;
use vocab::{Kind, TokenBytes};

/// Tokens that end a turn or a document by their name alone. They count as stop tokens if they are
/// control tokens, and, except for the document's end, if the chat template writes them.
const END_OF_TURN: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<|eom_id|>", "<|end_of_turn|>"];
const END_OF_DOCUMENT: &str = "<|endoftext|>";

/// Whether control tokens written in a text are recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// `<|im_end|>` in the text is ten characters of text. For anything a user wrote.
    Text,
    /// `<|im_end|>` in the text becomes its token. For prompts the caller trusts.
    Parse,
}

/// A stretch of text, or a special token found in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segment<'t> {
    Text(&'t str),
    Token(u32),
}

/// Converts between text and tokens. Immutable; share it between threads.
#[derive(Debug)]
pub struct Tokenizer {
    bpe: Bpe,
    splitter: Qwen2Splitter,
    bytes: TokenBytes,
    kinds: Vec<Kind>,
    // Recognised in all text, and only under `Specials::Parse`.
    added: SpecialSet,
    all_specials: SpecialSet,
    missing_bytes: Vec<u8>,
    stop_ids: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    padding: Option<u32>,
    add_bos: bool,
    chat_template: Option<String>,
}

impl Tokenizer {
    /// Checks `spec` and builds the tokenizer. `path` is the file to name in errors.
    ///
    /// # Errors
    /// An unsupported `model` or `pre`; a count, type or id out of range, a token or merge that occurs
    /// twice, a merge of unknown tokens: all name the key, and the index in its array.
    pub fn new(spec: TokenizerSpec, path: &Path) -> Result<Self> {
        for (key, found, supported) in
            [("tokenizer.ggml.model", &spec.model, "gpt2"), ("tokenizer.ggml.pre", &spec.pre, "qwen2")]
        {
            if found != supported {
                return Err(Error::unsupported(path, key, format!("{found:?}"), supported));
            }
        }
        let kinds = vocab::kinds(&spec, path)?;
        let alphabet = Alphabet::new();
        let bytes = TokenBytes::new(&spec, &kinds, &alphabet, path)?;
        let bpe = Bpe::new(&spec, &kinds, &alphabet, path)?;
        let special = |wanted: &'static [Kind]| {
            let chosen = kinds.iter().zip(0u32..).filter(|(kind, _)| wanted.contains(kind));
            SpecialSet::new(chosen.map(|(_, id)| id), &bytes)
        };
        let missing_bytes = (0..=255).filter(|b| !bpe.has(*b)).collect();
        Ok(Tokenizer {
            splitter: Qwen2Splitter::new()?,
            added: special(&[Kind::Added]),
            all_specials: special(&[Kind::Added, Kind::Control]),
            stop_ids: stop_ids(&spec, &kinds),
            missing_bytes,
            bpe,
            bytes,
            kinds,
            bos: spec.bos,
            eos: spec.eos,
            padding: spec.padding,
            add_bos: spec.add_bos,
            chat_template: spec.chat_template,
        })
    }

    /// The tokens of `text`. Never adds BOS or any other token that is not in the text.
    ///
    /// # Errors
    /// The vocabulary has no token for a byte of the text (a complete vocabulary has all 256).
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        for segment in self.segments(text, specials) {
            match segment {
                Segment::Token(id) => ids.push(id),
                Segment::Text(text) => self.encode_text(text, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// `text` cut at its special tokens.
    pub(crate) fn segments<'t>(
        &self,
        text: &'t str,
        specials: Specials,
    ) -> impl Iterator<Item = Segment<'t>> {
        let set = match specials {
            Specials::Text => &self.added,
            Specials::Parse => &self.all_specials,
        };
        let mut rest = text;
        let mut found = None;
        std::iter::from_fn(move || {
            if let Some(id) = found.take() {
                return Some(Segment::Token(id));
            }
            if rest.is_empty() {
                return None;
            }
            let (start, end, id) = match set.find(rest, &self.bytes) {
                Some((start, end, id)) => (start, end, Some(id)),
                None => (rest.len(), rest.len(), None),
            };
            let before = &rest[..start];
            rest = &rest[end..];
            match id {
                Some(id) if before.is_empty() => Some(Segment::Token(id)),
                _ => {
                    found = id;
                    Some(Segment::Text(before))
                }
            }
        })
    }

    /// Texts of the control tokens.
    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        let controls = self.kinds.iter().zip(0u32..).filter(|(kind, _)| **kind == Kind::Control);
        controls.filter_map(|(_, id)| std::str::from_utf8(self.token_bytes(id)?).ok())
    }

    /// Appends the tokens of text without special tokens.
    pub(crate) fn encode_text(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if let Some(byte) = self.missing_bytes.iter().find(|b| text.as_bytes().contains(b)) {
            let found = format!("byte 0x{byte:02x}");
            return Err(Error::argument("text", found, "bytes that the vocabulary has a token for"));
        }
        let mut scratch = bpe::Scratch::default();
        for piece in self.splitter.pieces(text) {
            self.bpe.encode(piece.as_bytes(), &mut scratch, ids);
        }
        Ok(())
    }

    /// The text of `ids`; bytes that form no character become U+FFFD. Control tokens are left out if
    /// `skip_specials`, else they appear as their names.
    ///
    /// # Errors
    /// An id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_specials: bool) -> Result<String> {
        let mut bytes = Vec::new();
        for &id in ids {
            let Some(token) = self.token_bytes(id) else {
                let allowed = format!("ids below the vocabulary size {}", self.vocab_size());
                return Err(Error::argument("ids", id, allowed));
            };
            if !(skip_specials && self.is_special(id)) {
                bytes.extend_from_slice(token);
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Number of tokens, unused ones included.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes a token adds to the text; for a control token its name, for an unused one none. `None`
    /// for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id)
    }

    /// Whether `id` is a control token: structure, not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&Kind::Control)
    }

    /// The control or added token written exactly `text`.
    pub fn special_id(&self, text: &str) -> Option<u32> {
        match self.all_specials.find(text, &self.bytes) {
            Some((0, end, id)) if end == text.len() => Some(id),
            _ => None,
        }
    }

    /// The token that begins a sequence, if the file names one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a sequence, if the file names one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that fills up batches, if the file names one.
    pub fn padding(&self) -> Option<u32> {
        self.padding
    }

    /// Whether the model expects BOS before every text.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Tokens that end a generation, ascending: every one the file names as EOS, EOT or EOM; the
    /// control token `<|endoftext|>`; and control tokens named like an end of turn (`<|im_end|>`,
    /// `<|eot_id|>`, ...) that occur in the chat template, or `<|im_end|>` if there is no template.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The file's chat template, a Jinja source.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Bytes of memory in use.
    pub fn memory_bytes(&self) -> usize {
        let template = self.chat_template.as_ref().map_or(0, String::capacity);
        let specials = self.added.memory_bytes() + self.all_specials.memory_bytes();
        size_of::<Self>()
            + self.bpe.memory_bytes()
            + self.bytes.memory_bytes()
            + self.kinds.capacity() * size_of::<Kind>()
            + specials
            + Qwen2Splitter::HEAP_BYTES
            + self.missing_bytes.capacity()
            + self.stop_ids.capacity() * size_of::<u32>()
            + template
    }
}

fn stop_ids(spec: &TokenizerSpec, kinds: &[Kind]) -> Vec<u32> {
    let named = [spec.eos, spec.eot, spec.eom].into_iter().flatten();
    let mut ids: Vec<u32> = named.chain(spec.more_eos.iter().copied()).collect();
    let template = spec.chat_template.as_deref().unwrap_or("<|im_end|>");
    for ((text, kind), id) in spec.tokens.iter().zip(kinds).zip(0u32..) {
        let ends_turn = END_OF_TURN.contains(&text) && template.contains(text);
        if *kind == Kind::Control && (ends_turn || text == END_OF_DOCUMENT) {
            ids.push(id);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
pub(crate) mod tests;
