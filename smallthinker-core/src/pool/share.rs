//! How the tasks of a job are dealt out: each thread has a share of neighbours, takes from its front, and when it has
//! done them takes from the ends of the others'.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// The tasks `from..to` that are left of a thread's share: `from` in the low half, `to` in the high. On a cache line
/// of its own. What a thread begins with is not in it: that it need not fetch this line before it starts.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Share(AtomicU64);

impl Share {
    pub(super) fn set(&self, left: &Range<usize>) {
        self.0.store(left.start as u64 | (left.end as u64) << 32, Ordering::Relaxed);
    }

    /// Takes half of what is left, up to `most`: the first indices, as the thread whose share it is does.
    pub(super) fn first(&self, most: usize) -> Option<Range<usize>> {
        self.take(|from, to| from + half(to - from, most), false)
    }

    /// Takes half of what is left, up to `most`: the last indices, as the others do.
    pub(super) fn last(&self, most: usize) -> Option<Range<usize>> {
        self.take(|from, to| to - half(to - from, most), true)
    }

    /// Cuts what is left in two, leaves one part and takes the other.
    fn take(&self, cut: impl Fn(u64, u64) -> u64, last: bool) -> Option<Range<usize>> {
        let mut taken = None;
        let update = |share: u64| {
            let (from, to) = (share & 0xffff_ffff, share >> 32);
            let at = if from < to { cut(from, to) } else { return None };
            let (take, leave) = if last { (at..to, from..at) } else { (from..at, at..to) };
            taken = Some(take);
            Some(leave.start | leave.end << 32)
        };
        // Relaxed: the tasks themselves are published with `epoch`.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).ok()?;
        taken.map(|range| range.start as usize..range.end as usize)
    }
}

/// Half of `left`, rounded up, but not more than `most`.
pub(super) fn half(left: u64, most: usize) -> u64 {
    left.div_ceil(2).min(most.max(1) as u64)
}
