//! What the cache did.

use std::time::Duration;

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
    /// Experts read from the file.
    pub misses: u64,
    /// Experts evicted.
    pub evictions: u64,
    /// Bytes read from the file.
    pub bytes_read: u64,
    /// Time that computation waited for reads.
    pub stall: Duration,
}

impl ExpertStats {
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
        }
    }
}
