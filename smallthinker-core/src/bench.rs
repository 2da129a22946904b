//! Benchmark: prefill and decode speed of a model, beside the speed at which this machine reads memory.
//!
//! Decoding reads every weight it uses once per token, so the share of the machine's read bandwidth that it
//! reaches says how much is left to gain.

use std::hint::black_box;
use std::time::Instant;

use crate::sample::SplitMix64;
use crate::{
    CancelFlag, Error, ExpertStats, FinishReason, GenerateOptions, GenerationStats, Model, Result, platform,
};

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchOptions {
    /// Tokens of the prompt, at least 1.
    pub prompt_tokens: usize,
    /// Tokens decoded after the prompt, at least 1.
    pub gen_tokens: usize,
    /// How often, at least 1; each time in a new session.
    pub repetitions: usize,
}

/// A figure over the repetitions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The greatest.
    pub max: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BenchReport {
    /// Prompt tokens per second.
    pub prefill: Spread,
    /// Decoded tokens per second.
    pub decode: Spread,
    /// Weight bytes that one decoded token streams through the kernels.
    pub bytes_per_token: u64,
    /// Bytes per second that a plain loop reads from memory, on as many threads; the best of all passes.
    pub read_bandwidth: f64,
    /// `bytes_per_token` × median decode speed / `read_bandwidth`.
    pub read_bandwidth_share: f64,
    /// Largest resident set of this process, the buffers of the bandwidth measurement not counted.
    pub peak_rss: Option<u64>,
    /// What the expert cache did meanwhile.
    pub experts: ExpertStats,
}

/// The prompt and the sampling are the same in every run.
const SEED: u64 = 20_507_209;
/// A buffer this many times the last-level cache is read from memory.
const CACHE_MULTIPLE: u64 = 4;
const MIN_BUFFER: u64 = 256 << 20;
const MAX_BUFFER: u64 = 1 << 30;
/// Passes over the buffer per measurement; the first also brings its pages in.
const PASSES: usize = 3;

/// Measures `model`. `progress` is told the repetitions done and wanted, and returns whether to go on.
///
/// Errors: [`Error::InvalidArgument`] for a count of 0; [`Error::ContextOverflow`]; [`Error::Cancelled`], also when
/// `cancel` is set; those of a generation.
pub fn run(
    model: &Model,
    options: &BenchOptions,
    cancel: &CancelFlag,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<BenchReport> {
    let BenchOptions { prompt_tokens, gen_tokens, repetitions } = *options;
    let counts = [("prompt_tokens", prompt_tokens), ("gen_tokens", gen_tokens), ("repetitions", repetitions)];
    if let Some((name, n)) = counts.into_iter().find(|(_, n)| *n == 0) {
        return Err(Error::argument(name, n, "1 or more"));
    }
    let needed = prompt_tokens.saturating_add(gen_tokens).saturating_add(1);
    if needed > model.context_length() {
        return Err(Error::ContextOverflow { needed, limit: model.context_length() });
    }
    let prompt = random_tokens(model, prompt_tokens)?;
    let threads = model.stats().threads;
    let experts_before = model.stats().experts;
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    let mut bytes_per_token = 0;
    let mut bandwidth = 0f64;
    let mut peak = PeakRss { bytes: None, exact: true };
    for i in 0..repetitions {
        let stats = repetition(model, &prompt, gen_tokens, cancel)?;
        prefill.push(stats.prefill_tokens_per_second());
        decode.push(stats.decode_tokens_per_second());
        bytes_per_token = stats.bytes_per_token();
        peak.note();
        // Between repetitions, so that both figures see the same neighbours on this machine.
        bandwidth = bandwidth.max(measure_read_bandwidth(threads)?);
        peak.forget();
        if !progress(i + 1, repetitions) {
            return Err(Error::Cancelled);
        }
    }
    let (prefill, decode) = (spread(prefill), spread(decode));
    let share = if bandwidth > 0.0 { bytes_per_token as f64 * decode.median / bandwidth } else { 0.0 };
    Ok(BenchReport {
        prefill,
        decode,
        bytes_per_token,
        read_bandwidth: bandwidth,
        read_bandwidth_share: share,
        peak_rss: peak.bytes,
        experts: model.stats().experts.since(&experts_before),
    })
}

/// One prompt and its continuation in a session of their own.
fn repetition(
    model: &Model,
    prompt: &[u32],
    gen_tokens: usize,
    cancel: &CancelFlag,
) -> Result<GenerationStats> {
    let mut session = model.session()?;
    session.append_tokens(prompt)?;
    // The first token comes from the prompt's evaluation; each further one takes one step of decoding.
    let mut options = GenerateOptions::max_tokens(gen_tokens + 1);
    options.ignore_stop_tokens = true;
    if cancel.is_cancelled() {
        return Err(Error::Cancelled); // starting would reset the flag
    }
    session.set_cancel_flag(cancel.clone());
    let mut generation = session.generate(options)?;
    for piece in generation.by_ref() {
        piece?;
    }
    match generation.finish_reason() {
        Some(FinishReason::Cancelled) => Err(Error::Cancelled),
        _ => Ok(generation.stats().clone()),
    }
}

/// Ordinary tokens of the vocabulary: no special ones, which a model may never have seen inside a text.
fn random_tokens(model: &Model, n: usize) -> Result<Vec<u32>> {
    let tokenizer = model.tokenizer();
    let vocab = tokenizer.vocab_size() as u32;
    let ordinary: Vec<u32> = (0..vocab)
        .filter(|&id| !tokenizer.is_special(id) && tokenizer.token_bytes(id).is_some_and(|b| !b.is_empty()))
        .collect();
    let mut rng = SplitMix64::new(SEED);
    let pick = |_| ordinary.get((rng.next_unit() * ordinary.len() as f64) as usize).copied();
    let prompt: Option<Vec<u32>> = (0..n).map(pick).collect();
    prompt.ok_or_else(|| Error::Internal { message: "a vocabulary without ordinary tokens".into() })
}

/// The peak of the resident set, with the bandwidth buffers kept out of it.
struct PeakRss {
    bytes: Option<u64>,
    /// Whether the system's own figure holds nothing but the model's.
    exact: bool,
}

impl PeakRss {
    fn note(&mut self) {
        if self.exact {
            self.bytes = self.bytes.max(platform::peak_rss_bytes());
        }
    }

    fn forget(&mut self) {
        self.exact = self.exact && platform::reset_peak_rss();
    }
}

/// Bytes per second that `threads` threads together read from memory with a plain loop: the best of several passes
/// over a buffer far larger than the caches.
pub fn measure_read_bandwidth(threads: usize) -> Result<f64> {
    let cache = platform::last_level_cache_bytes().unwrap_or(0);
    let bytes = (cache * CACHE_MULTIPLE).clamp(MIN_BUFFER, MAX_BUFFER);
    let threads = threads.max(1);
    let words = bytes as usize / 8 / threads / LANES * LANES;
    let mut parts: Vec<Vec<u64>> = Vec::new();
    for _ in 0..threads {
        let mut part = Vec::new();
        part.try_reserve_exact(words).map_err(|_| Error::Budget {
            what: "the bandwidth measurement".into(),
            needed: bytes,
            available: 0,
        })?;
        part.resize(words, 1);
        parts.push(part);
    }
    let mut best = 0f64;
    for _ in 0..PASSES {
        let began = Instant::now();
        std::thread::scope(|scope| {
            for part in &parts {
                scope.spawn(move || black_box(sum(black_box(part))));
            }
        });
        best = best.max((words * 8 * threads) as f64 / began.elapsed().as_secs_f64());
    }
    Ok(best)
}

const LANES: usize = 64;

/// Reads everything, with enough independent additions that memory is what it waits for.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; LANES];
    for group in words.chunks_exact(LANES) {
        for (lane, word) in lanes.iter_mut().zip(group) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().fold(0, |a, &b| a.wrapping_add(b))
}

fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
    let (n, last) = (values.len(), values.len().saturating_sub(1));
    Spread { min: at(0), median: (at(last / 2) + at(n / 2)) / 2.0, max: at(last) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_of_known_values() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(spread(vec![4.0, 1.0, 2.0, 3.0]), Spread { min: 1.0, median: 2.5, max: 4.0 });
        assert_eq!(spread(vec![5.0]), Spread { min: 5.0, median: 5.0, max: 5.0 });
    }

    #[test]
    fn sum_reads_every_word() {
        let words: Vec<u64> = (0..LANES as u64 * 5).collect();
        let n = words.len() as u64;
        assert_eq!(sum(&words), n * (n - 1) / 2);
    }

    #[test]
    fn bandwidth_is_that_of_a_memory() {
        let bandwidth = measure_read_bandwidth(1).unwrap();
        assert!((1e8..1e13).contains(&bandwidth), "{bandwidth:e} bytes per second");
    }
}
