//! How well a model predicts a text: perplexity and bits per byte.
//!
//! The protocol, so that figures can be compared with those of other programs:
//!
//! - The text is encoded once, special tokens written in it as ordinary text.
//! - It is read in windows of `context` positions that begin `stride` tokens apart. Each window starts with an empty
//!   past; if the model wants BOS, BOS takes its first position.
//! - Every token is scored once, in the first window that holds it. So tokens of the first window have whatever past
//!   the text gives them, and all others at least `context - stride` positions (one less without BOS).
//! - The text's first token is scored only after BOS: a model without one has nothing to predict it from. Tokens
//!   that are not scored count neither as tokens nor as bytes.
//! - Always the full head, and its logits as they are: no temperature, no sampling filters.

use crate::tokenizer::Specials;
use crate::{CancelFlag, Error, Model, Result};

/// Window of a model with a longer context, unless another is asked for.
const DEFAULT_CONTEXT: usize = 2048;

/// How to read the text.
#[derive(Debug, Clone, Default)]
pub struct PerplexityOptions {
    /// Positions of a window, 2 or more, at most the model's. `None`: 2,048, or the model's if that is less.
    pub context: Option<usize>,
    /// Tokens from the beginning of one window to that of the next, 1 to `context - 1`. `None`: half of the context.
    /// The smaller, the more past every token has, and the longer it takes: `context / stride` times the text.
    pub stride: Option<usize>,
}

/// How well a model predicted a text.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Perplexity {
    /// Tokens that were scored.
    pub tokens: usize,
    /// Bytes of these tokens.
    pub bytes: usize,
    /// Sum of their negative log probabilities, in nats.
    pub nats: f64,
    /// Windows that were evaluated.
    pub windows: usize,
    /// Positions of a window.
    pub context: usize,
    /// Tokens between the beginnings of two windows.
    pub stride: usize,
    /// Whether each window began with BOS.
    pub bos: bool,
}

impl Perplexity {
    /// e to the mean negative log probability of a token. Depends on the tokenizer, unlike bits per byte.
    pub fn perplexity(&self) -> f64 {
        (self.nats / self.tokens as f64).exp()
    }

    /// Bits that a perfect coder with this model would write for a byte of the text.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.bytes as f64
    }

    /// Bits for a token.
    pub fn bits_per_token(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.tokens as f64
    }
}

/// Scores `text`. `progress` is told the tokens done and in all after each window, and returns whether to go on.
///
/// Errors: options outside their range; a text without a token that can be scored; [`Error::Cancelled`] when `cancel` is
/// set or `progress` says so; [`Error::Budget`] if there is no room for a few positions' logits; those of evaluation.
///
/// ```no_run
/// use smallthinker_core::{CancelFlag, Model, PerplexityOptions, perplexity};
/// let model = Model::open("model.gguf")?;
/// let text = "It was the best of times, it was the worst of times";
/// let found = perplexity(&model, text, &PerplexityOptions::default(), &CancelFlag::new(), &mut |_, _| true)?;
/// println!("{:.3} bits per byte", found.bits_per_byte());
/// # Ok::<(), smallthinker_core::Error>(())
/// ```
pub fn perplexity(
    model: &Model,
    text: &str,
    options: &PerplexityOptions,
    cancel: &CancelFlag,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Perplexity> {
    let tokenizer = model.tokenizer();
    let limit = model.context_length();
    let context = options.context.unwrap_or(DEFAULT_CONTEXT.min(limit));
    if !(2..=limit).contains(&context) {
        return Err(Error::argument("context", context, format!("2 to {limit}, the model's own")));
    }
    let stride = options.stride.unwrap_or(context / 2);
    if !(1..context).contains(&stride) {
        return Err(Error::argument(
            "stride",
            stride,
            format!("1 to {}, less than the context", context - 1),
        ));
    }
    let tokens = tokenizer.encode(text, Specials::Text)?;
    let bos = tokenizer.add_bos() && tokenizer.bos().is_some();
    let (first, room) = if bos { (0, context - 1) } else { (1, context) };
    let Some(scored) = tokens.get(first..).filter(|scored| !scored.is_empty()) else {
        let allowed = format!("a text of {} tokens or more", first + 1);
        return Err(Error::argument("text", format!("{} tokens", tokens.len()), allowed));
    };
    let bytes = |token: &u32| tokenizer.token_bytes(*token).map_or(0, |bytes| bytes.len());
    let mut found = Perplexity {
        tokens: scored.len(),
        bytes: scored.iter().map(bytes).sum(),
        nats: 0.0,
        windows: 0,
        context,
        stride,
        bos,
    };
    let mut session = model.session()?;
    session.set_cancel_flag(cancel.clone());
    let mut done = first;
    for start in (0..tokens.len()).step_by(stride) {
        let end = tokens.len().min(start + room);
        session.rewind(0)?;
        session.append_tokens(&tokens[start..end])?;
        // Where BOS was added, tokens stand one place further on.
        let before = session.tokens().len() - (end - start);
        found.nats -= session.token_logprobs(done - start + before)?.iter().sum::<f64>();
        found.windows += 1;
        done = end;
        if !progress(done, tokens.len()) {
            return Err(Error::Cancelled);
        }
        if done == tokens.len() {
            break;
        }
    }
    Ok(found)
}
