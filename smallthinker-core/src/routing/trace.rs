//! A routing trace in memory. Whatever it holds was checked when it came in.

use crate::{Error, Result};

/// What a trace needs to know of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// File name of the model, at most 255 bytes.
    pub model: String,
    /// Experts of each layer.
    pub n_experts: usize,
    /// Experts that a token chooses in each layer.
    pub top_k: usize,
    /// Bytes of a cache slot.
    pub slot_bytes: u64,
    /// Bytes that are read from the model's file for one expert of each layer; one entry per layer.
    pub expert_bytes: Vec<u64>,
}

/// Experts of all layers together, at most: far above any model, and what a replay has memory for.
const MAX_EXPERTS: usize = 1 << 20;
const MAX_NAME: usize = 255;

/// What is wrong, for an error that names the file or the argument.
pub(super) struct Fault {
    pub(super) field: &'static str,
    pub(super) found: String,
    pub(super) allowed: String,
}

impl Fault {
    pub(super) fn new(field: &'static str, found: impl ToString, allowed: impl Into<String>) -> Fault {
        Fault { field, found: found.to_string(), allowed: allowed.into() }
    }

    fn of_argument(self) -> Error {
        Error::argument(self.field, self.found, self.allowed)
    }
}

impl Shape {
    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.expert_bytes.len()
    }

    /// Experts of all layers together.
    pub fn experts(&self) -> usize {
        self.layers() * self.n_experts
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.model.len() > MAX_NAME {
            let found = format!("{} bytes", self.model.len());
            return Err(Fault::new("model name", found, format!("at most {MAX_NAME} bytes")));
        }
        if self.layers() == 0 {
            return Err(Fault::new("layers", 0, "1 or more"));
        }
        let most = MAX_EXPERTS / self.layers();
        if !(1..=most).contains(&self.n_experts) {
            let allowed = format!("1 to {most}, with {} layers", self.layers());
            return Err(Fault::new("experts per layer", self.n_experts, allowed));
        }
        if !(1..=self.n_experts).contains(&self.top_k) {
            return Err(Fault::new("experts used", self.top_k, format!("1 to {}", self.n_experts)));
        }
        if self.slot_bytes == 0 {
            return Err(Fault::new("slot bytes", 0, "1 or more"));
        }
        Ok(())
    }
}

/// Why tokens were evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PassKind {
    /// They were given, and evaluated together.
    Prompt,
    /// One token, evaluated to go on from it.
    Decode,
}

/// Tokens that went through the model together, and what they chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedPass {
    kind: PassKind,
    tokens: usize,
    /// `[layer][token][top_k]`, ascending for each token.
    choices: Vec<u32>,
}

impl TracedPass {
    /// Why they were evaluated.
    pub fn kind(&self) -> PassKind {
        self.kind
    }

    /// Number of tokens, at least 1.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The experts of every layer in turn: `top_k` in ascending order for the first token, then for the next.
    pub fn layers(&self, shape: &Shape) -> impl Iterator<Item = &[u32]> {
        self.choices.chunks_exact(self.tokens * shape.top_k)
    }

    pub(super) fn choices(&self) -> &[u32] {
        &self.choices
    }
}

/// The experts that a text's tokens chose, pass by pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    shape: Shape,
    passes: Vec<TracedPass>,
}

impl Trace {
    /// An empty trace. Errors: [`Error::InvalidArgument`] for a shape without layers, experts or slots, or with more
    /// than 1,048,576 experts in all.
    pub fn new(shape: Shape) -> Result<Trace> {
        shape.check().map_err(Fault::of_argument)?;
        Ok(Trace::empty(shape))
    }

    /// A trace of a shape that was checked.
    pub(super) fn empty(shape: Shape) -> Trace {
        Trace { shape, passes: Vec::new() }
    }

    /// The model's shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The passes in the order in which they were evaluated.
    pub fn passes(&self) -> &[TracedPass] {
        &self.passes
    }

    /// Number of tokens that were evaluated in passes of a kind.
    pub fn tokens(&self, kind: PassKind) -> usize {
        self.passes.iter().filter(|p| p.kind == kind).map(|p| p.tokens).sum()
    }

    /// Adds a pass: `choices` are the chosen experts, `[layer][token][top_k]`.
    ///
    /// Errors: [`Error::InvalidArgument`] unless there is one choice of `top_k` different experts, in ascending order,
    /// for every layer and token, and at least one token, for a decode pass exactly one.
    pub fn push(&mut self, kind: PassKind, tokens: usize, choices: Vec<u32>) -> Result<()> {
        self.add(kind, tokens, choices).map_err(Fault::of_argument)
    }

    pub(super) fn add(&mut self, kind: PassKind, tokens: usize, choices: Vec<u32>) -> Result<(), Fault> {
        let allowed = match kind {
            PassKind::Prompt if tokens == 0 => Some("1 or more"),
            PassKind::Decode if tokens != 1 => Some("1 in a decode pass"),
            _ => None,
        };
        if let Some(allowed) = allowed {
            return Err(Fault::new("tokens of a pass", tokens, allowed));
        }
        self.check_choices(tokens, &choices)?;
        self.passes.push(TracedPass { kind, tokens, choices });
        Ok(())
    }

    fn check_choices(&self, tokens: usize, choices: &[u32]) -> Result<(), Fault> {
        let shape = &self.shape;
        let expected = shape.layers().checked_mul(tokens).and_then(|n| n.checked_mul(shape.top_k));
        if expected != Some(choices.len()) {
            let allowed = format!("{} layers x {tokens} tokens x {}", shape.layers(), shape.top_k);
            return Err(Fault::new("choices of a pass", choices.len(), allowed));
        }
        for token in choices.chunks_exact(shape.top_k) {
            let inside = token.iter().all(|&expert| (expert as usize) < shape.n_experts);
            if !inside || token.windows(2).any(|pair| pair[0] >= pair[1]) {
                let allowed = format!("experts 0 to {} in ascending order", shape.n_experts - 1);
                return Err(Fault::new("choice of a token", format!("{token:?}"), allowed));
            }
        }
        Ok(())
    }
}
