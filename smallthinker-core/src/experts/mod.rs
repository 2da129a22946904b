//! The expert cache: experts live in slots of one arena, shared by all layers and all sessions.
//!
//! With a budget above the size of the bank, the cache simply never evicts: one path for models that fit
//! and models that don't. A slot's bytes are owned by exactly one party at a time: the free list, the
//! reader that fills them, or the cache, which lends them out for reading. So an expert that is not fully
//! read can't be computed with, by construction.

pub(crate) mod policy;
mod readers;
mod slot;
mod stats;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cancel::CancelFlag;
use crate::gguf::Source;
use crate::model::expert_index::ExpertIndex;
use crate::{Error, Result};

pub use policy::CachePolicy;
use readers::{Readers, Wanted};
use slot::{Entry, State};
pub(crate) use slot::{ExpertId, ExpertSlot};
pub use stats::ExpertStats;

/// How often a waiting thread looks at its cancel flag.
const POLL: Duration = Duration::from_millis(20);

/// The cache. Forward passes take turns (see `Pool::team`), so at most one of them holds slots at a time
/// and a budget of `top_k` slots can always make progress.
pub(crate) struct ExpertCache {
    shared: Arc<Shared>,
    readers: Readers,
}

/// What the cache and its readers share.
struct Shared {
    index: ExpertIndex,
    source: Arc<Source>,
    state: Mutex<State>,
    /// An entry became ready or failed.
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExpertCache {
    /// A cache of `slots` slots, filled by `readers` threads.
    pub(crate) fn new(
        index: ExpertIndex,
        source: Arc<Source>,
        slots: usize,
        policy: CachePolicy,
        readers: usize,
    ) -> Result<ExpertCache> {
        let policy = policy.start(index.layers.len(), index.n_experts);
        let state = State::new(slots, index.slot_bytes, policy)?;
        let shared = Arc::new(Shared { index, source, state: Mutex::new(state), changed: Condvar::new() });
        Ok(ExpertCache { readers: Readers::start(Arc::clone(&shared), readers)?, shared })
    }

    pub(crate) fn index(&self) -> &ExpertIndex {
        &self.shared.index
    }

    /// Starts loading those of `experts` that are absent, as far as slots can be had without waiting. `experts` are
    /// the choices of `tokens` tokens; the pass acquires each of them in ascending order.
    pub(crate) fn request(&self, layer: usize, tokens: usize, experts: impl Iterator<Item = usize>) {
        let n_experts = self.shared.index.n_experts;
        let mut state = self.shared.lock();
        state.turn(layer, n_experts, tokens, experts);
        for id in (0..n_experts).map(|expert| (layer, expert)) {
            if state.is_awaited(id) {
                self.request_one(&mut state, id, false);
            }
        }
    }

    /// Starts loading those of `experts` that are absent, as [`request`](Self::request) does, for a pass that has
    /// requested all its experts and now comes to these.
    pub(crate) fn remind(&self, layer: usize, experts: impl Iterator<Item = usize>) {
        let mut state = self.shared.lock();
        for expert in experts {
            if !state.entries.contains_key(&(layer, expert)) {
                self.request_one(&mut state, (layer, expert), false);
            }
        }
    }

    /// Slots in all.
    pub(crate) fn slots(&self) -> usize {
        self.shared.lock().slots
    }

    /// Whether the expert is here or on its way after the call.
    fn request_one(&self, state: &mut State, id: ExpertId, urgent: bool) -> bool {
        match state.entries.get(&id) {
            // An earlier pass's failure: read again.
            Some(Entry::Failed(_)) => drop(state.entries.remove(&id)),
            Some(Entry::Loading) => return true,
            Some(Entry::Ready(_)) => {
                state.stats.hits += 1;
                return true;
            }
            None => {}
        }
        let Some(bytes) = state.take_slot(id, urgent) else { return false };
        state.entries.insert(id, Entry::Loading);
        state.stats.misses += 1;
        self.readers.read(Wanted { id, bytes });
        true
    }

    /// The expert's weights, waiting for its read if need be. It is not evicted while the `Arc` lives.
    pub(crate) fn acquire(&self, id: ExpertId, cancel: &CancelFlag) -> Result<Arc<ExpertSlot>> {
        let mut waiting_since = None;
        let mut state = self.shared.lock();
        loop {
            match state.entries.get(&id) {
                Some(Entry::Ready(slot)) => {
                    let slot = Arc::clone(slot);
                    state.acquired(id);
                    state.stats.stall +=
                        waiting_since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
                    return Ok(slot);
                }
                Some(Entry::Failed(_)) => {
                    if let Some(Entry::Failed(error)) = state.entries.remove(&id) {
                        return Err(error);
                    }
                }
                Some(Entry::Loading) => {}
                None => {
                    if !self.request_one(&mut state, id, true) && state.loading() == 0 {
                        let message = "all expert slots are held and none is loading".into();
                        return Err(Error::Internal { message });
                    }
                }
            }
            cancel.check()?;
            waiting_since.get_or_insert_with(Instant::now);
            state = self
                .shared
                .changed
                .wait_timeout(state, POLL)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    /// Fills the cache with every expert, in file order. For a budget that holds them all.
    pub(crate) fn preload(&self, cancel: &CancelFlag, loaded: &mut dyn FnMut(u64)) -> Result<()> {
        for layer in 0..self.shared.index.layers.len() {
            // One layer ahead keeps the readers busy while this thread waits.
            for ahead in [layer, layer + 1] {
                if ahead < self.shared.index.layers.len() {
                    let mut state = self.shared.lock();
                    for expert in 0..self.shared.index.n_experts {
                        self.request_one(&mut state, (ahead, expert), false);
                    }
                }
            }
            for expert in 0..self.shared.index.n_experts {
                self.acquire((layer, expert), cancel)?;
                loaded(self.shared.index.layers[layer].expert_bytes());
            }
        }
        // Loading is not a generation's miss.
        self.shared.lock().stats = ExpertStats::default();
        Ok(())
    }

    /// Counters since the model was opened, and the present fill.
    pub(crate) fn stats(&self) -> ExpertStats {
        let state = self.shared.lock();
        ExpertStats { slots: state.slots as u64, resident: state.ready as u64, ..state.stats.clone() }
    }
}

/// Slots per chosen expert that a cache needs at least: the experts being computed, and as many on their way.
pub(crate) const MIN_SLOTS_PER_CHOICE: usize = 2;
