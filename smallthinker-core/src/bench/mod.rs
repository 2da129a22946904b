//! Benchmark: prefill and decode speed of a model, beside the speed at which this machine reads memory.
//!
//! Before what is measured, the prompt and a few tokens are evaluated once: memory that the system has yet to find and
//! clear, and caches that are cold, are no part of the figures. llama.cpp's `llama-bench` does the same.
//!
//! What is decoded is a given text or random tokens, not what the model would say: left alone after a random prompt, a model
//! may repeat itself, and then it needs the same experts and neurons over and over.
//!
//! Decoding reads every weight it uses, and every key and value it sees, once per token, so the share of the machine's read bandwidth that it
//! reaches says how much is left to gain. Under a budget that does not hold all experts it reads from storage, whose
//! bandwidth is measured in the same run as well.

mod memory;
mod storage;

use std::time::Duration;

use crate::sample::SplitMix64;
use crate::{
    CancelFlag, Error, ExpertStats, FinishReason, GenerateOptions, GenerationStats, Model, Result,
    StageTimes, platform,
};

pub use memory::{ReadBandwidth, measure_read_bandwidth};

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchOptions {
    /// Tokens of the prompt, at least 1.
    pub prompt_tokens: usize,
    /// Tokens decoded after the prompt, at least 1.
    pub gen_tokens: usize,
    /// How often, at least 1; each time in a new session.
    pub repetitions: usize,
    /// Tokens of a text to measure with: first the prompt, then what is decoded; at least as many as those two together. `None`:
    /// random ordinary ones, the same in every run.
    pub text: Option<Vec<u32>>,
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
    /// Time and bytes by stage.
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
    /// Bytes of weights, and of keys and values, that one decoded token has to read from memory.
    pub bytes_per_token: u64,
    /// Bytes per second of decode: `bytes_per_token` × median decode speed.
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
    /// What it did during decode, in the same repetition as `decode_token`.
    pub decode_experts: ExpertStats,
    /// Bytes of experts read from the file per decoded token, in the same repetition.
    pub read_bytes_per_token: u64,
    /// What storage allows, if not all experts are in memory.
    pub storage: Option<StorageReport>,
    /// Share of decode's time that computation waited for experts or rearranged them, in the same repetition.
    pub stall_share: f64,
}

/// What storage allows decoding.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct StorageReport {
    /// Bytes per second that as many threads as the model has for it, and slots, read of experts, in any order, while nothing else
    /// is done; the best of one pass after each repetition.
    pub bandwidth: f64,
    /// Tokens per second at which storage alone would be busy all the time: `bandwidth` per
    /// [`read_bytes_per_token`](BenchReport::read_bytes_per_token); infinite if nothing was read.
    pub limit: f64,
    /// Share of that limit that the median decode speed is.
    pub limit_share: f64,
}

/// The prompt and the sampling are the same in every run.
const SEED: u64 = 20_507_209;
/// Tokens decoded before what is measured, at most.
const WARM_UP_TOKENS: usize = 8;
/// Measures `model`. `progress` is told the repetitions done and wanted, and returns whether to go on.
///
/// Errors: [`Error::InvalidArgument`] for a count of 0, for a text that is too short or has other tokens than the model; [`Error::ContextOverflow`]; [`Error::Cancelled`], also when
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
    let text = text(model, options)?;
    let threads = model.stats().threads;
    let experts_before = model.stats().experts;
    let mut runs = Vec::new();
    let mut bandwidth = ReadBandwidth::default();
    let mut storage: Option<f64> = None;
    let mut peak = PeakRss { bytes: None, exact: true };
    let warm_up = BenchOptions { gen_tokens: gen_tokens.min(WARM_UP_TOKENS), ..options.clone() };
    repetition(model, &text, &warm_up, cancel)?;
    for i in 0..repetitions {
        runs.push(repetition(model, &text, options, cancel)?);
        peak.note();
        // Between repetitions, so that all figures see the same neighbours on this machine.
        if !model.inner.cache.is_complete() {
            // At once: many devices are faster for a while after they have rested, which they do not while decoding.
            let now = storage::measure(&model.inner.cache, &*model.inner.pool.team(cancel)?)?;
            storage = Some(storage.unwrap_or(0.0).max(now));
        }
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
        decode_experts: middle.decode_experts.clone(),
        read_bytes_per_token: middle.read_bytes_per_token(),
        stall_share: middle.stall_share(),
        storage: storage.map(|bandwidth| storage_report(bandwidth, decode.median, middle)),
    })
}

fn storage_report(bandwidth: f64, decode: f64, stats: &GenerationStats) -> StorageReport {
    let bytes = stats.read_bytes_per_token();
    let limit = if bytes == 0 { f64::INFINITY } else { bandwidth / bytes as f64 };
    StorageReport { bandwidth, limit, limit_share: decode / limit }
}

/// The prompt and what is decoded.
fn text(model: &Model, options: &BenchOptions) -> Result<Vec<u32>> {
    let needed = options.prompt_tokens + options.gen_tokens;
    let Some(text) = &options.text else { return random_tokens(model, needed) };
    if text.len() < needed {
        let allowed = format!("{needed} or more, as prompt_tokens and gen_tokens ask for");
        return Err(Error::argument("text", format_args!("{} tokens", text.len()), allowed));
    }
    Ok(text.clone())
}

/// A prompt and what follows it in a session of their own.
fn repetition(
    model: &Model,
    text: &[u32],
    options: &BenchOptions,
    cancel: &CancelFlag,
) -> Result<GenerationStats> {
    let mut session = model.session()?;
    session.set_detailed_timing(options.detailed);
    let (prompt, decoded) = text.split_at(options.prompt_tokens.min(text.len()));
    session.append_tokens(prompt)?;
    // The first token comes from the prompt's evaluation; each further one takes one step of decoding.
    let mut options = GenerateOptions::max_tokens(options.gen_tokens + 1);
    options.ignore_stop_tokens = true;
    if cancel.is_cancelled() {
        return Err(Error::Cancelled); // starting would reset the flag
    }
    session.set_cancel_flag(cancel.clone());
    let mut generator = session.start(options)?;
    let mut decoded = decoded.iter();
    while let Some(piece) = generator.step(&mut session) {
        piece?;
        if let Some(token) = decoded.next() {
            session.replace_last(*token)?;
        }
    }
    match generator.finish_reason() {
        Some(FinishReason::Cancelled) => Err(Error::Cancelled),
        _ => Ok(generator.stats().clone()),
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
}
