//! From logits to one token.
//!
//! The steps, in this order (that of Hugging Face transformers, so settings carry over from there):
//!
//! 1. logit bias: added to the logits of the tokens it names;
//! 2. repetition penalty: tokens among the last `repetition_window` have positive logits divided and
//!    negative ones multiplied by the penalty (Keskar et al., arXiv 1909.05858);
//! 3. temperature: 0 ends here with the largest logit, anything else divides the logits;
//! 4. top-k: the k largest logits stay;
//! 5. top-p: of those, the smallest set of largest probabilities whose sum reaches p (Holtzman et al.,
//!    arXiv 1904.09751);
//! 6. min-p: of those, the ones at least `min_p` times as probable as the most probable
//!    (Nguyen et al., arXiv 2407.01082);
//! 7. one random draw from what is left.
//!
//! Equal logits are ordered by token id, lowest first, in every step. A logit of minus infinity means
//! "never" (a sparse head produces them) and is never chosen; NaN and plus infinity are errors.

mod filters;
mod logprobs;
mod params;
mod rng;

pub use logprobs::{TokenLogprobs, top_logprobs};
pub use params::SamplingParams;
pub use rng::SplitMix64;

use crate::error::{Error, Result};
use filters::Candidate;

/// Chooses tokens; holds the random state and scratch space of one conversation.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    rng: SplitMix64,
    adjusted: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler at the start of its random sequence. Without a seed in `params`, one is drawn from the
    /// operating system; [`Sampler::seed`] tells which, so that a run can be repeated.
    ///
    /// # Errors
    /// A parameter outside its range.
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.validate()?;
        let seed = params.seed.unwrap_or_else(rng::seed_from_os);
        let rng = SplitMix64::new(seed);
        Ok(Sampler { params, seed, rng, adjusted: Vec::new(), candidates: Vec::new() })
    }

    /// The parameters in use.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The seed in use, given or drawn.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The random state, for [`Sampler::restore`].
    pub fn state(&self) -> [u8; 8] {
        self.rng.state().to_le_bytes()
    }

    /// Continues the random sequence from a state that [`Sampler::state`] returned.
    pub fn restore(&mut self, state: [u8; 8]) {
        self.rng = SplitMix64::new(u64::from_le_bytes(state));
    }

    /// Chooses the next token.
    ///
    /// `logits` has one value per token of the vocabulary; `history` is the conversation so far, oldest
    /// token first (only the repetition penalty reads it). A greedy choice does not advance the random
    /// state.
    ///
    /// # Errors
    /// `logits` is empty, holds NaN or plus infinity, or nothing but minus infinity; a token of
    /// `logit_bias` or of the history's window is not in the vocabulary.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        let (best, max) = survey(logits)?;
        let mut adjusted = std::mem::take(&mut self.adjusted);
        let token = self.params.adjust(logits, history, &mut adjusted).and_then(|changed| match changed {
            true => self.choose(&adjusted, survey(&adjusted)?),
            false => self.choose(logits, (best, max)),
        });
        self.adjusted = adjusted;
        token
    }

    /// Chooses among `logits`, of which `best` is the largest, `max`.
    fn choose(&mut self, logits: &[f32], (best, max): (u32, f32)) -> Result<u32> {
        if max == f32::NEG_INFINITY {
            return Err(Error::argument(
                "logits",
                "minus infinity for every token",
                "at least one finite value",
            ));
        }
        if self.params.temperature == 0.0 {
            return Ok(best);
        }
        filters::collect(&self.params, logits, max, &mut self.candidates);
        let total: f64 = self.candidates.iter().map(|c| c.weight).sum();
        let mut left = self.rng.next_unit() * total;
        let mut chosen = best;
        for c in &self.candidates {
            if c.weight > 0.0 {
                chosen = c.id;
                left -= c.weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        Ok(chosen)
    }
}

/// Logits between two looks at how they compare with those before.
const CHUNK: usize = 256;
/// Values that are looked at together.
const LANES: usize = 16;

/// The token with the largest logit, the lowest id among equals, and its logit, in one pass. Refuses empty logits and values
/// that have no order or no finite exponential.
fn survey(logits: &[f32]) -> Result<(u32, f32)> {
    if logits.is_empty() || u32::try_from(logits.len()).is_err() {
        return Err(Error::argument("logits", format!("{} values", logits.len()), "one per token"));
    }
    let (mut place, mut max) = (0, f32::NEG_INFINITY);
    for (i, chunk) in logits.chunks(CHUNK).enumerate() {
        // No way out of these loops: then they are ones for vector instructions.
        let (mut lanes, mut fine) = ([f32::NEG_INFINITY; LANES], true);
        let (whole, rest) = chunk.as_chunks::<LANES>();
        for values in whole {
            for (lane, &l) in lanes.iter_mut().zip(values) {
                fine &= l < f32::INFINITY;
                *lane = if l > *lane { l } else { *lane };
            }
        }
        if !fine || !rest.iter().all(|l| *l < f32::INFINITY) {
            let bad = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY).unwrap_or(0);
            let allowed = "finite numbers or minus infinity";
            return Err(Error::argument("logits", format!("{} for token {bad}", logits[bad]), allowed));
        }
        let largest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
        if largest > max {
            (place, max) = (i * CHUNK, largest);
        }
    }
    let best = place + logits[place..].iter().position(|l| *l == max).unwrap_or(0);
    Ok((best as u32, max))
}

#[cfg(test)]
mod tests;
