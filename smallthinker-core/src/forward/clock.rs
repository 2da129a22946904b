//! Where the time of a forward pass goes.

use std::time::{Duration, Instant};

/// Parts of a forward pass, in the order of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Stage {
    /// Looking up embeddings.
    Embedding,
    /// Router logits and the choice of experts.
    Router,
    /// Norms, and activations brought to 8 bits.
    Norm,
    /// Queries, keys and values; rotation; filling the KV cache.
    Qkv,
    /// Attention over the KV cache.
    Attention,
    /// The output projection of attention.
    AttentionOut,
    /// Waiting for experts that are still being read, and rearranging those that have been.
    Wait,
    /// The experts' gate and up projections, where they are not told apart.
    GateUp,
    /// The experts' gate projection.
    Gate,
    /// The experts' up projection.
    Up,
    /// The experts' down projection.
    Down,
    /// The language-model head.
    Head,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Stage; 12] = [
        Stage::Embedding,
        Stage::Router,
        Stage::Norm,
        Stage::Qkv,
        Stage::Attention,
        Stage::AttentionOut,
        Stage::Wait,
        Stage::GateUp,
        Stage::Gate,
        Stage::Up,
        Stage::Down,
        Stage::Head,
    ];

    /// Name for tables and machine-readable output.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Embedding => "embedding",
            Stage::Router => "router",
            Stage::Norm => "norm",
            Stage::Qkv => "qkv",
            Stage::Attention => "attention",
            Stage::AttentionOut => "attention_out",
            Stage::Wait => "wait",
            Stage::GateUp => "gate_up",
            Stage::Gate => "gate",
            Stage::Up => "up",
            Stage::Down => "down",
            Stage::Head => "head",
        }
    }
}

/// Time by stage, and bytes of weights or, of attention, of keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTimes {
    time: [Duration; Stage::ALL.len()],
    bytes: [u64; Stage::ALL.len()],
}

impl StageTimes {
    /// Time that went into a stage.
    pub fn time(&self, stage: Stage) -> Duration {
        self.time[stage as usize]
    }

    /// Bytes that a stage had to read from memory: weights, and keys and values.
    pub fn bytes(&self, stage: Stage) -> u64 {
        self.bytes[stage as usize]
    }

    /// Bytes of all stages.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Time of all stages.
    pub fn total_time(&self) -> Duration {
        self.time.iter().sum()
    }

    /// The mean over `tokens` tokens: times to the nanosecond, bytes rounded down. Zeros for no tokens.
    pub fn per_token(&self, tokens: usize) -> StageTimes {
        let n = u32::try_from(tokens).unwrap_or(u32::MAX);
        StageTimes {
            time: self.time.map(|t| t.checked_div(n).unwrap_or_default()),
            bytes: self.bytes.map(|b| b.checked_div(u64::from(n)).unwrap_or_default()),
        }
    }

    pub(crate) fn add(&mut self, other: &StageTimes) {
        self.time.iter_mut().zip(other.time).for_each(|(a, b)| *a += b);
        self.bytes.iter_mut().zip(other.bytes).for_each(|(a, b)| *a += b);
    }
}

/// A stop watch with one hand: each lap goes to the stage that has just ended.
pub(crate) struct Clock {
    last: Instant,
    pub(crate) times: StageTimes,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { last: Instant::now(), times: StageTimes::default() }
    }

    /// The time since the last lap went into `stage`.
    pub(crate) fn lap(&mut self, stage: Stage) {
        let now = Instant::now();
        self.times.time[stage as usize] += now - self.last;
        self.last = now;
    }

    /// As [`lap`](Self::lap), of a stage with two parts that took `first` : `second` of it.
    pub(crate) fn lap_split(&mut self, stages: [Stage; 2], first: Duration, second: Duration) {
        let now = Instant::now();
        let (elapsed, both) = (now - self.last, first + second);
        let share = if both.is_zero() { 0.5 } else { first.as_secs_f64() / both.as_secs_f64() };
        let first = elapsed.mul_f64(share.clamp(0.0, 1.0));
        self.times.time[stages[0] as usize] += first;
        self.times.time[stages[1] as usize] += elapsed.saturating_sub(first);
        self.last = now;
    }

    /// Notes bytes that `stage` had to read from memory.
    pub(crate) fn bytes(&mut self, stage: Stage, bytes: u64) {
        self.times.bytes[stage as usize] += bytes;
    }
}
