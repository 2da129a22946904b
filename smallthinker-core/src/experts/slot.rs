//! Slots and their states.

use std::collections::HashMap;
use std::sync::Arc;

use super::policy::Policy;
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

/// The layer that the pass in progress has come to, and its experts that are still to be computed.
#[derive(Default)]
struct Awaited {
    layer: usize,
    /// Tokens that chose each expert; 0 once it was acquired.
    uses: Vec<u32>,
}

impl Awaited {
    fn contains(&self, (layer, expert): ExpertId) -> bool {
        layer == self.layer && self.uses.get(expert).is_some_and(|&uses| uses > 0)
    }
}

pub(super) struct State {
    pub(super) entries: HashMap<ExpertId, Entry>,
    policy: Box<dyn Policy>,
    awaited: Awaited,
    pub(super) stats: ExpertStats,
    pub(super) slots: usize,
    /// Entries that are [`Entry::Ready`].
    pub(super) ready: usize,
    free: Vec<Slab>,
}

impl State {
    pub(super) fn new(slots: usize, slot_bytes: usize, policy: Box<dyn Policy>) -> Result<State> {
        let refuse = || Error::Budget {
            what: format!("{slots} expert slots"),
            needed: slots as u64 * slot_bytes as u64,
            available: 0,
        };
        let mut arena =
            Arena::new(slots.checked_mul(Arena::footprint(slot_bytes)).ok_or_else(refuse)?, "expert slots")?;
        let mut free: Vec<Slab> = std::iter::from_fn(|| arena.take(slot_bytes)).take(slots).collect();
        free.reverse(); // handed out from the end: ascending addresses
        let (entries, awaited, stats) = (HashMap::new(), Awaited::default(), ExpertStats::default());
        Ok(State { entries, policy, awaited, stats, slots, ready: 0, free })
    }

    /// Notes that a pass has come to a layer, and what its `tokens` tokens chose there.
    pub(super) fn turn(
        &mut self,
        layer: usize,
        n_experts: usize,
        tokens: usize,
        choices: impl Iterator<Item = usize>,
    ) {
        self.awaited.layer = layer;
        self.awaited.uses.clear();
        self.awaited.uses.resize(n_experts, 0);
        choices.for_each(|expert| self.awaited.uses[expert] += 1);
        self.policy.turn(layer, tokens, &self.awaited.uses);
    }

    /// Whether the pass in progress has yet to compute the expert.
    pub(super) fn is_awaited(&self, id: ExpertId) -> bool {
        self.awaited.contains(id)
    }

    /// Notes that the expert is being computed.
    pub(super) fn acquired(&mut self, (layer, expert): ExpertId) {
        if layer == self.awaited.layer && expert < self.awaited.uses.len() {
            self.awaited.uses[expert] = 0;
        }
    }

    /// A slot for `id`: a free one, or that of the policy's victim. None that is held or that the pass in progress
    /// will need; but if `id` is `urgent`, that of the expert that the pass needs last.
    pub(super) fn take_slot(&mut self, id: ExpertId, urgent: bool) -> Option<Slab> {
        let slab = match self.free.pop() {
            Some(slab) => slab,
            None => self.evict(urgent)?,
        };
        self.policy.inserted(id);
        Some(slab)
    }

    fn evict(&mut self, urgent: bool) -> Option<Slab> {
        let (entries, awaited) = (&self.entries, &self.awaited);
        // The lock is held, and clones are made only under it: a count of one stays one.
        let idle = |id: &ExpertId| match entries.get(id) {
            Some(Entry::Ready(slot)) => Arc::strong_count(slot) == 1,
            _ => false,
        };
        let victim = self.policy.victim(&|id| idle(&id) && !awaited.contains(id)).or_else(|| {
            // Experts are computed in the order of their numbers.
            let of_layer = (0..awaited.uses.len()).rev().map(|expert| (awaited.layer, expert));
            of_layer.into_iter().find(|id| urgent && idle(id))
        })?;
        self.policy.removed(victim);
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
    pub(super) fn put_back(&mut self, id: ExpertId, bytes: Slab) {
        self.policy.removed(id);
        self.free.push(bytes);
    }

    pub(super) fn loading(&self) -> usize {
        self.entries.values().filter(|e| matches!(e, Entry::Loading)).count()
    }
}
