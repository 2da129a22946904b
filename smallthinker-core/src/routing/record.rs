//! Recording: a text through the model, and what its tokens chose.

use std::ffi::OsStr;

use super::trace::{PassKind, Shape, Trace};
use crate::model::Inner;
use crate::tokenizer::Specials;
use crate::{CancelFlag, Error, FinishReason, GenerateOptions, Model, Result, SamplingParams};

/// What to record.
#[derive(Debug, Clone, Default)]
pub struct RecordOptions {
    /// Tokens to decode after the text, at most; the model's own stop tokens end it before.
    pub max_tokens: usize,
    /// How they are chosen. The default is greedy.
    pub sampling: SamplingParams,
    /// So many tokens of the text, at least 1, are evaluated together; the rest one by one and recorded as decoded, as
    /// if the model had written them (the last one as a prompt of its own, if the text is continued). `None`: all of them
    /// together.
    pub prompt_tokens: Option<usize>,
}

impl Trace {
    /// An empty trace of a model.
    pub(crate) fn of(model: &Inner) -> Result<Trace> {
        let index = model.cache.index();
        Trace::new(Shape {
            model: model.path.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned(),
            n_experts: index.n_experts,
            top_k: model.h.top_k,
            slot_bytes: index.slot_bytes as u64,
            expert_bytes: index.layers.iter().map(|layer| layer.expert_bytes()).collect(),
        })
    }
}

/// Evaluates `text` in a new session, continues it, and returns the experts that its tokens chose.
///
/// Errors: options outside their range; [`Error::ContextOverflow`]; [`Error::Cancelled`] when `cancel` is set; those of
/// a generation.
pub fn record(model: &Model, text: &str, options: RecordOptions, cancel: &CancelFlag) -> Result<Trace> {
    if options.prompt_tokens == Some(0) {
        return Err(Error::argument("prompt_tokens", 0, "1 or more"));
    }
    let tokens = model.tokenizer().encode(text, Specials::Text)?;
    let (prompt, rest) = tokens.split_at(options.prompt_tokens.unwrap_or(usize::MAX).min(tokens.len()));
    // The last token sampled is not evaluated.
    let sampled = options.max_tokens.checked_add(1).filter(|_| options.max_tokens > 0);
    let (needed, limit) = (tokens.len().saturating_add(sampled.unwrap_or(0)), model.context_length());
    if needed > limit {
        return Err(Error::ContextOverflow { needed, limit });
    }
    let mut session = model.session()?;
    session.set_cancel_flag(cancel.clone());
    session.record_routing()?;
    session.append_tokens(prompt)?;
    let mut kind = PassKind::Prompt;
    for token in rest {
        session.evaluate_as(kind)?;
        session.append_tokens(std::slice::from_ref(token))?;
        kind = PassKind::Decode;
    }
    if cancel.is_cancelled() {
        return Err(Error::Cancelled); // starting would reset the flag
    }
    if let Some(sampled) = sampled {
        let mut generate = GenerateOptions::max_tokens(sampled);
        generate.sampling = options.sampling;
        let mut generation = session.generate(generate)?;
        generation.by_ref().try_for_each(|piece| piece.map(drop))?;
        if generation.finish_reason() == Some(FinishReason::Cancelled) {
            return Err(Error::Cancelled);
        }
    } else {
        session.evaluate_as(kind)?;
    }
    session.take_routing().ok_or_else(|| Error::Internal { message: "a recording without a trace".into() })
}
