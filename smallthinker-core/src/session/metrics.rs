//! How fast a generation was, and why.

use std::time::Duration;

use crate::experts::ExpertStats;
use crate::forward::clock::StageTimes;
use crate::model::LmHead;

/// Figures of one generation. Prefill is the evaluation of the prompt; decode is everything after the
/// first token.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GenerationStats {
    /// Tokens of the conversation before the generation.
    pub prompt_tokens: usize,
    /// Of these, already evaluated earlier.
    pub cached_tokens: usize,
    /// Tokens generated (the stop token not counted).
    pub generated_tokens: usize,
    /// Time to evaluate the prompt.
    pub prefill_time: Duration,
    /// Time from the first token to the last.
    pub decode_time: Duration,
    /// Time from the start of the generation to its first token.
    pub time_to_first_token: Duration,
    /// Tokens evaluated during decode.
    pub decode_steps: usize,
    /// Where the time of prefill went.
    pub prefill_stages: StageTimes,
    /// Where the time of decode went, and what it read; sampling is not part of it.
    pub decode_stages: StageTimes,
    /// What the expert cache did meanwhile (for all sessions of the model).
    pub experts: ExpertStats,
    /// Of that, what it did during decode.
    pub decode_experts: ExpertStats,
    /// Kernel set in use.
    pub kernels: &'static str,
    /// Compute threads.
    pub threads: usize,
    /// How logits were made.
    pub lm_head: LmHead,
    /// Rows of the head that decode computed.
    pub head_rows: usize,
    /// The seed that reproduces the text.
    pub seed: u64,
}

impl GenerationStats {
    /// Prompt tokens evaluated per second; 0 if none were.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prefill_tokens() as f64, self.prefill_time)
    }

    /// Prompt tokens that were evaluated.
    pub fn prefill_tokens(&self) -> usize {
        self.prompt_tokens.saturating_sub(self.cached_tokens)
    }

    /// Tokens generated per second after the first; 0 if there was only one.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.decode_steps as f64, self.decode_time)
    }

    /// Bytes of weights, and of keys and values, that decode had to read from memory.
    pub fn decode_bytes(&self) -> u64 {
        self.decode_stages.total_bytes()
    }

    /// The same per decoded token.
    pub fn bytes_per_token(&self) -> u64 {
        self.decode_bytes().checked_div(self.decode_steps as u64).unwrap_or(0)
    }

    /// Rows of the head computed per decoded token; 0 if there were none.
    pub fn head_rows_per_token(&self) -> f64 {
        if self.decode_steps == 0 { 0.0 } else { self.head_rows as f64 / self.decode_steps as f64 }
    }

    /// Bytes of experts read from the file per decoded token.
    pub fn read_bytes_per_token(&self) -> u64 {
        self.decode_experts.bytes_read.checked_div(self.decode_steps as u64).unwrap_or(0)
    }

    /// Share of decode's time that computation waited for experts or rearranged them, 0 to 1.
    pub fn stall_share(&self) -> f64 {
        rate(self.decode_experts.stall.as_secs_f64(), self.decode_time)
    }

    /// What one prompt token took.
    pub fn prefill_per_token(&self) -> StageTimes {
        self.prefill_stages.per_token(self.prefill_tokens())
    }

    /// What one decoded token took.
    pub fn decode_per_token(&self) -> StageTimes {
        self.decode_stages.per_token(self.decode_steps)
    }

    /// Those bytes per second of decode: compare with the machine's read bandwidth.
    pub fn bandwidth(&self) -> f64 {
        rate(self.decode_bytes() as f64, self.decode_time)
    }
}

fn rate(amount: f64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { amount / time.as_secs_f64() }
}
