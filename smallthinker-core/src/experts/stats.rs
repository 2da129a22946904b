//! What the cache did.

use std::time::{Duration, Instant};

/// Counters of the expert cache since the model was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpertStats {
    /// Slots in the cache.
    pub slots: u64,
    /// Experts present now.
    pub resident: u64,
    /// Uses that found the expert present.
    pub hits: u64,
    /// Uses that did not.
    pub misses: u64,
    /// Experts evicted.
    pub evictions: u64,
    /// Bytes read from the file, those of guesses included.
    pub bytes_read: u64,
    /// Time that computation waited for reads, or that its threads spent on them: they rearrange what was read, and files that lie in
    /// memory they read themselves.
    pub stall: Duration,
    /// Time during which anything was being read and brought into its place.
    pub reading: Duration,
    /// Experts read before they were chosen.
    pub look_ahead: LookAheadStats,
}

/// What became of the experts that were requested for a layer before its router had run. All but those that are
/// still on their way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookAheadStats {
    /// Requested in all.
    pub requested: u64,
    /// Chosen, and present by then.
    pub on_time: u64,
    /// Chosen, but not yet present.
    pub late: u64,
    /// Not chosen, but read.
    pub wasted: u64,
    /// Not chosen, and not read either, as nobody had time.
    pub withdrawn: u64,
    /// Evicted before their layer's turn.
    pub evicted: u64,
}

impl ExpertStats {
    /// Share of uses that were hits, 0 to 1; 0 if there was none.
    pub fn hit_rate(&self) -> f64 {
        let uses = self.hits + self.misses;
        if uses == 0 { 0.0 } else { self.hits as f64 / uses as f64 }
    }

    /// Bytes read per second of reading; 0 if nothing was read.
    pub fn read_rate(&self) -> f64 {
        if self.reading.is_zero() { 0.0 } else { self.bytes_read as f64 / self.reading.as_secs_f64() }
    }

    /// What happened since `earlier`; fill and size are the present ones.
    pub fn since(&self, earlier: &ExpertStats) -> ExpertStats {
        ExpertStats {
            slots: self.slots,
            resident: self.resident,
            hits: self.hits.saturating_sub(earlier.hits),
            misses: self.misses.saturating_sub(earlier.misses),
            evictions: self.evictions.saturating_sub(earlier.evictions),
            bytes_read: self.bytes_read.saturating_sub(earlier.bytes_read),
            stall: self.stall.saturating_sub(earlier.stall),
            reading: self.reading.saturating_sub(earlier.reading),
            look_ahead: self.look_ahead.since(&earlier.look_ahead),
        }
    }
}

impl LookAheadStats {
    fn since(&self, earlier: &LookAheadStats) -> LookAheadStats {
        LookAheadStats {
            requested: self.requested.saturating_sub(earlier.requested),
            on_time: self.on_time.saturating_sub(earlier.on_time),
            late: self.late.saturating_sub(earlier.late),
            wasted: self.wasted.saturating_sub(earlier.wasted),
            withdrawn: self.withdrawn.saturating_sub(earlier.withdrawn),
            evicted: self.evicted.saturating_sub(earlier.evicted),
        }
    }
}

/// Adds up the time during which at least one of several threads is at work.
#[derive(Default)]
pub(super) struct Stopwatch {
    inside: usize,
    since: Option<Instant>,
    total: Duration,
}

impl Stopwatch {
    pub(super) fn enter(&mut self) {
        self.inside += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    pub(super) fn leave(&mut self) {
        self.inside = self.inside.saturating_sub(1);
        if self.inside == 0 {
            self.total += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        }
    }

    /// Threads at work.
    pub(super) fn inside(&self) -> usize {
        self.inside
    }

    /// The time so far.
    pub(super) fn total(&self) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
