//! Slots and their states.

use std::collections::HashMap;
use std::sync::Arc;

use super::policy::Lru;
use super::stats::ExpertStats;
use crate::arena::{Arena, Slab};
use crate::model::expert_index::ExpertMatrix;
use crate::tensor::matrix::Matrix;
use crate::{Error, Result};

/// Layer and expert number.
pub(crate) type ExpertId = (usize, usize);

/// The weights of one expert, complete, in memory.
pub(crate) struct ExpertSlot {
    bytes: Slab,
}

impl ExpertSlot {
    pub(super) fn new(bytes: Slab) -> ExpertSlot {
        ExpertSlot { bytes }
    }

    /// One of its matrices.
    pub(crate) fn matrix(&self, m: &ExpertMatrix) -> Matrix<'_> {
        let data = self.bytes.get(m.at..m.at + m.slot_bytes).unwrap_or(&[]);
        Matrix { dtype: m.dtype, layout: m.layout, rows: m.rows, cols: m.cols, data }
    }
}

/// What the cache knows of an expert. No entry: absent.
pub(super) enum Entry {
    /// On its way; the reader owns the slot.
    Loading,
    Ready(Arc<ExpertSlot>),
    /// The read failed. The first to ask gets the reason; the request after that reads again.
    Failed(Error),
}

pub(super) struct State {
    pub(super) entries: HashMap<ExpertId, Entry>,
    pub(super) policy: Lru,
    pub(super) stats: ExpertStats,
    pub(super) slots: usize,
    /// Entries that are [`Entry::Ready`].
    pub(super) ready: usize,
    free: Vec<Slab>,
}

impl State {
    pub(super) fn new(slots: usize, slot_bytes: usize) -> Result<State> {
        let refuse = || Error::Budget {
            what: format!("{slots} expert slots"),
            needed: slots as u64 * slot_bytes as u64,
            available: 0,
        };
        let mut arena =
            Arena::new(slots.checked_mul(Arena::footprint(slot_bytes)).ok_or_else(refuse)?, "expert slots")?;
        let mut free: Vec<Slab> = std::iter::from_fn(|| arena.take(slot_bytes)).take(slots).collect();
        free.reverse(); // handed out from the end: ascending addresses
        let policy = Lru::default();
        Ok(State { entries: HashMap::new(), policy, stats: ExpertStats::default(), slots, ready: 0, free })
    }

    /// A slot to fill: a free one, or the policy's victim among those that nobody holds.
    pub(super) fn take_slot(&mut self) -> Option<Slab> {
        if let Some(slab) = self.free.pop() {
            return Some(slab);
        }
        let entries = &self.entries;
        // The lock is held, and clones are made only under it: a count of one stays one.
        let idle = |id: &ExpertId| match entries.get(id) {
            Some(Entry::Ready(slot)) => Arc::strong_count(slot) == 1,
            _ => false,
        };
        let victim = self.policy.victim(idle)?;
        self.policy.forget(victim);
        match self.entries.remove(&victim) {
            Some(Entry::Ready(slot)) => {
                self.stats.evictions += 1;
                self.ready -= 1;
                Arc::into_inner(slot).map(|slot| slot.bytes)
            }
            _ => None,
        }
    }

    /// Takes back the slot of a failed read.
    pub(super) fn put_back(&mut self, bytes: Slab) {
        self.free.push(bytes);
    }

    pub(super) fn loading(&self) -> usize {
        self.entries.values().filter(|e| matches!(e, Entry::Loading)).count()
    }
}
