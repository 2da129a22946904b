//! Benchmark: prefill and decode speed of a model, beside the speed at which this machine reads memory.
//!
//! Before what is measured, the prompt and a few tokens are evaluated once: memory that the system has yet to find and
//! clear, and caches that are cold, are no part of the figures. llama.cpp's `llama-bench` does the same.
//!
//! Decoding reads every weight it uses once per token, so the share of the machine's read bandwidth that it
//! reaches says how much is left to gain.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::arena::{Arena, Slab};
use crate::kernels::Kernels;
use crate::sample::SplitMix64;
use crate::{
    CancelFlag, Error, ExpertStats, FinishReason, GenerateOptions, GenerationStats, Model, Result,
    StageTimes, platform,
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
    /// Tell the experts' gate projection from their up projection
    /// ([`Session::set_detailed_timing`](crate::Session::set_detailed_timing)); costs a few percent of the speed.
    pub detailed: bool,
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

/// What one token took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenCost {
    /// Time, with what is no stage of the forward pass, such as sampling.
    pub time: Duration,
    /// Time and weight bytes by stage.
    pub stages: StageTimes,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BenchReport {
    /// Prompt tokens per second.
    pub prefill: Spread,
    /// Decoded tokens per second.
    pub decode: Spread,
    /// Seconds from the start of a generation to its first token.
    pub time_to_first_token: Spread,
    /// Time that opening the model took.
    pub load_time: Duration,
    /// Mean of the prompt's tokens, in the repetition whose decode speed is the median (the lower of two in the
    /// middle).
    pub prefill_token: TokenCost,
    /// Mean of the decoded tokens in the same repetition.
    pub decode_token: TokenCost,
    /// Weight bytes that one decoded token streams through the kernels.
    pub bytes_per_token: u64,
    /// Weight bytes per second of decode: `bytes_per_token` × median decode speed.
    pub decode_bandwidth: f64,
    /// Bytes per second that the fastest of several loops reads from memory, on as many threads; the best of all
    /// passes.
    pub read_bandwidth: f64,
    /// The same of a plain loop.
    pub read_bandwidth_plain: f64,
    /// `decode_bandwidth` / `read_bandwidth`.
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
/// Tokens decoded before what is measured, at most.
const WARM_UP_TOKENS: usize = 8;
/// Passes of each loop over the buffer per measurement.
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
    let BenchOptions { prompt_tokens, gen_tokens, repetitions, .. } = *options;
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
    let mut runs = Vec::new();
    let mut bandwidth = ReadBandwidth::default();
    let mut peak = PeakRss { bytes: None, exact: true };
    let warm_up = BenchOptions { gen_tokens: gen_tokens.min(WARM_UP_TOKENS), ..options.clone() };
    repetition(model, &prompt, &warm_up, cancel)?;
    for i in 0..repetitions {
        runs.push(repetition(model, &prompt, options, cancel)?);
        peak.note();
        // Between repetitions, so that both figures see the same neighbours on this machine.
        bandwidth = bandwidth.max(measure_read_bandwidth(threads)?);
        peak.forget();
        if !progress(i + 1, repetitions) {
            return Err(Error::Cancelled);
        }
    }
    runs.sort_by(|a, b| a.decode_tokens_per_second().total_cmp(&b.decode_tokens_per_second()));
    let Some(middle) = runs.get(runs.len().saturating_sub(1) / 2) else {
        return Err(Error::Internal { message: "no repetition".into() });
    };
    let over = |figure: &dyn Fn(&GenerationStats) -> f64| spread(runs.iter().map(figure).collect());
    let decode = over(&GenerationStats::decode_tokens_per_second);
    let bytes_per_token = middle.bytes_per_token();
    let decode_bandwidth = bytes_per_token as f64 * decode.median;
    Ok(BenchReport {
        prefill: over(&GenerationStats::prefill_tokens_per_second),
        decode,
        time_to_first_token: over(&|stats| stats.time_to_first_token.as_secs_f64()),
        load_time: model.stats().load_time,
        prefill_token: TokenCost {
            time: per_token(middle.prefill_time, middle.prefill_tokens()),
            stages: middle.prefill_per_token(),
        },
        decode_token: TokenCost {
            time: per_token(middle.decode_time, middle.decode_steps),
            stages: middle.decode_per_token(),
        },
        bytes_per_token,
        decode_bandwidth,
        read_bandwidth: bandwidth.best,
        read_bandwidth_plain: bandwidth.plain,
        read_bandwidth_share: if bandwidth.best > 0.0 { decode_bandwidth / bandwidth.best } else { 0.0 },
        peak_rss: peak.bytes,
        experts: model.stats().experts.since(&experts_before),
    })
}

/// One prompt and its continuation in a session of their own.
fn repetition(
    model: &Model,
    prompt: &[u32],
    options: &BenchOptions,
    cancel: &CancelFlag,
) -> Result<GenerationStats> {
    let mut session = model.session()?;
    session.set_detailed_timing(options.detailed);
    session.append_tokens(prompt)?;
    // The first token comes from the prompt's evaluation; each further one takes one step of decoding.
    let mut options = GenerateOptions::max_tokens(options.gen_tokens + 1);
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

/// Bytes per second that a machine reads from memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct ReadBandwidth {
    /// Of the fastest loop.
    pub best: f64,
    /// Of a plain loop.
    pub plain: f64,
}

impl ReadBandwidth {
    fn max(self, other: ReadBandwidth) -> ReadBandwidth {
        ReadBandwidth { best: self.best.max(other.best), plain: self.plain.max(other.plain) }
    }
}

/// Bytes that a loop reads in one go.
const STEP: usize = 512;
/// How far ahead of its reading a loop asks for memory.
const AHEAD: usize = 4096;
/// Places at which a loop reads in turn, at most.
const STREAMS: usize = 4;

/// Ways to read memory, the plain one first. Which is the fastest depends on the machine: some ask for memory far
/// enough ahead by themselves, others need to be asked, or to see several streams.
const LOOPS: [fn(&Kernels, &[u8]) -> u64; 4] =
    [sum::<1, false>, sum::<1, true>, sum::<STREAMS, false>, sum::<STREAMS, true>];

/// What `threads` threads together read from memory per second: the best of several passes over a buffer far larger
/// than the caches.
pub fn measure_read_bandwidth(threads: usize) -> Result<ReadBandwidth> {
    let cache = platform::last_level_cache_bytes().unwrap_or(0);
    let bytes = (cache * CACHE_MULTIPLE).clamp(MIN_BUFFER, MAX_BUFFER) as usize;
    let threads = threads.max(1);
    // Whole steps of every loop, so that all of them read all of it.
    let part_bytes = bytes / threads / (STEP * STREAMS) * (STEP * STREAMS);
    // As the weights lie: in huge pages where the system has them.
    let mut arena = Arena::new(Arena::footprint(part_bytes) * threads, "the bandwidth measurement")?;
    let mut parts: Vec<Slab> = (0..threads).map_while(|_| arena.take(part_bytes)).collect();
    // Memory that was never written may be one page of zeros, over and over.
    on_each(parts.iter_mut(), |part| part.fill(1));
    let kernels = Kernels::detect(); // for its way to ask ahead, whatever set the model uses
    let mut rates = [0f64; LOOPS.len()];
    for _ in 0..PASSES {
        // In turn, so that all see the same neighbours on this machine.
        for (rate, read) in rates.iter_mut().zip(LOOPS) {
            let began = Instant::now();
            on_each(parts.iter(), |part| {
                black_box(read(kernels, black_box(part)));
            });
            *rate = rate.max((part_bytes * parts.len()) as f64 / began.elapsed().as_secs_f64());
        }
    }
    Ok(ReadBandwidth { best: rates.into_iter().fold(0.0, f64::max), plain: rates[0] })
}

/// Does `work` with every item, each on a thread of its own.
fn on_each<T: Send>(items: impl Iterator<Item = T>, work: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for item in items {
            let work = &work;
            scope.spawn(move || work(item));
        }
    });
}

/// The sum of all words (of whole steps at each of `N` places), with enough independent additions that memory is what
/// it waits for.
fn sum<const N: usize, const ASK: bool>(kernels: &Kernels, bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; STEP / 8];
    let stream = bytes.len() / N / STEP * STEP;
    for at in (0..stream).step_by(STEP) {
        for n in 0..N {
            let rest = &bytes[n * stream + at..];
            if ASK {
                kernels.prefetch(rest.get(AHEAD..AHEAD + STEP).unwrap_or_default());
            }
            for (lane, word) in lanes.iter_mut().zip(rest.as_chunks().0) {
                *lane = lane.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
    }
    lanes.iter().fold(0, |a, &b| a.wrapping_add(b))
}

fn per_token(time: Duration, tokens: usize) -> Duration {
    time.checked_div(u32::try_from(tokens).unwrap_or(u32::MAX)).unwrap_or_default()
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
    fn every_loop_reads_every_word() {
        let words: Vec<u64> = (0..(STEP * STREAMS * 5 / 8) as u64).collect();
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let n = words.len() as u64;
        for (i, read) in LOOPS.iter().enumerate() {
            assert_eq!(read(Kernels::detect(), &bytes), n * (n - 1) / 2, "loop {i}");
        }
    }

    #[test]
    fn bandwidth_is_that_of_a_memory() {
        let ReadBandwidth { best, plain } = measure_read_bandwidth(1).unwrap();
        assert!(
            (1e8..1e13).contains(&plain) && plain <= best && best < 1e13,
            "{plain:e}, {best:e} bytes per second"
        );
    }
}
