//! Sampling parameters: their ranges, and the steps that change logits one by one.

use crate::error::{Error, Result};

/// How a token is chosen. The default is greedy: always the largest logit.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 means greedy. Finite, at least 0.
    pub temperature: f32,
    /// Keep this many largest logits; 0 keeps all.
    pub top_k: usize,
    /// Keep the most probable tokens up to this sum of probabilities. In (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this share as probable as the most probable. In [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Above 1 discourages tokens already in the window, below 1 encourages them, 1 does nothing.
    /// Finite, above 0.
    pub repetition_penalty: f32,
    /// How many of the latest tokens the repetition penalty looks at; 0 means the whole conversation.
    pub repetition_window: usize,
    /// (token id, value added to its logit): finite, or minus infinity to forbid the token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Start of the random sequence: same seed, same choices. `None` draws one from the system.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 64,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Checks every range.
    ///
    /// # Errors
    /// The first parameter outside its range, with its value and the range.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, name, found: f32, allowed| {
            if ok { Ok(()) } else { Err(Error::argument(name, found, allowed)) }
        };
        let t = self.temperature;
        check(t.is_finite() && t >= 0.0, "temperature", t, "finite, at least 0")?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", self.top_p, "above 0, at most 1")?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", self.min_p, "0 to 1")?;
        let penalty = self.repetition_penalty;
        check(penalty.is_finite() && penalty > 0.0, "repetition_penalty", penalty, "finite, above 0")?;
        for &(id, bias) in &self.logit_bias {
            if bias.is_nan() || bias == f32::INFINITY {
                let found = format!("{bias} for token {id}");
                return Err(Error::argument("logit_bias", found, "finite numbers or minus infinity"));
            }
        }
        Ok(())
    }

    /// Applies bias and repetition penalty into `out`. Returns false, leaving `out` alone, when there
    /// is nothing to apply.
    pub(super) fn adjust(&self, logits: &[f32], history: &[u32], out: &mut Vec<f32>) -> Result<bool> {
        let penalise = self.repetition_penalty != 1.0 && !history.is_empty();
        if self.logit_bias.is_empty() && !penalise {
            return Ok(false);
        }
        out.clear();
        out.extend_from_slice(logits);
        let vocab = logits.len();
        for &(id, bias) in &self.logit_bias {
            let logit = out.get_mut(id as usize).ok_or_else(|| not_in_vocab("logit_bias", id, vocab))?;
            // Never beyond the finite range: infinity minus infinity later on would be NaN.
            *logit = (*logit + bias).min(f32::MAX);
        }
        if penalise {
            let start = match self.repetition_window {
                0 => 0,
                window => history.len().saturating_sub(window),
            };
            let mut seen = history[start..].to_vec();
            seen.sort_unstable();
            seen.dedup();
            let penalty = self.repetition_penalty;
            for id in seen {
                let logit = out.get_mut(id as usize).ok_or_else(|| not_in_vocab("history", id, vocab))?;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty }.min(f32::MAX);
            }
        }
        Ok(true)
    }
}

fn not_in_vocab(name: &'static str, id: u32, vocab: usize) -> Error {
    Error::argument(name, format!("token {id}"), format!("ids below the vocabulary size {vocab}"))
}
