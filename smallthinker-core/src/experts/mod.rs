//! The expert cache: experts live in slots of one arena, shared by all layers and all sessions.
//!
//! With a budget above the size of the bank, the cache simply never evicts: one path for models that fit
//! and models that don't. A slot's bytes are owned by exactly one party at a time: the free list, the
//! reader that fills them, the pass that rearranges them, or the cache, which lends them out for reading.
//! So an expert that is not fully read can't be computed with, by construction.
//!
//! File order: `queue` (what is to be read), `entries` (what is known of each expert) and `slot` (who is where) →
//! `readers` (threads that fill slots), `arrange` (compute threads bring what was read into its layout) and `fetch`
//! (compute threads do both) → this file and `acquire` (what a pass sees); `policy` says what to evict, `stats` what
//! happened.

mod acquire;
mod arrange;
mod entries;
mod fetch;
pub(crate) mod policy;
pub(crate) mod queue;
mod readers;
mod slot;
mod stats;
mod sync;

#[cfg(all(test, not(smallthinker_loom)))]
mod arrange_tests;
#[cfg(all(test, smallthinker_loom))]
mod model_check;
#[cfg(all(test, not(smallthinker_loom)))]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use crate::Result;
use crate::budget::{Budget, Lease, Reserve};
use crate::cancel::CancelFlag;
use crate::gguf::{Reads, Source};
use crate::model::expert_index::ExpertIndex;
use crate::pool::Team;

use entries::Entry;
pub use policy::CachePolicy;
use queue::Urgency;
use readers::Readers;
pub(crate) use slot::{ExpertId, ExpertSlot};
use slot::{Slot, State};
pub use stats::{ExpertStats, LookAheadStats};
use sync::{Condvar, Mutex, MutexGuard};

/// How often a waiting thread looks at its cancel flag.
const POLL: Duration = Duration::from_millis(20);

/// How a cache works, as opposed to what it holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheOptions {
    /// Slots at first.
    pub(crate) slots: usize,
    /// Slots at least, whatever others want.
    pub(crate) least: usize,
    /// What it evicts.
    pub(crate) policy: CachePolicy,
    /// Threads that read.
    pub(crate) readers: usize,
    /// Whether they read through the system's page cache even if there is no slot for every expert.
    pub(crate) buffered: bool,
}

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
    buffered: bool,
    /// Whether the file lies in memory: see [`fetch`].
    in_memory: bool,
    fetch_buffers: fetch::Buffers,
    /// Whether there is a slot for every expert.
    complete: AtomicBool,
    /// Slots that the cache would like to have.
    wanted: AtomicUsize,
    /// Slots that it can't do without.
    least: usize,
    /// What the slots take of the budget.
    lease: Mutex<Lease>,
    budget: Arc<Budget>,
    state: Mutex<State>,
    /// There is something to read, or never again.
    work: Condvar,
    /// An entry became ready or failed.
    changed: Condvar,
}

impl Shared {
    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the number of slots, and what they take of the budget: first what is given, then what is taken. Waits for
    /// reads in progress and for experts that are held.
    fn resize(&self, lease: &mut Lease, slots: usize) -> Result<()> {
        let bytes = (slots as u64).saturating_mul(self.index.slot_bytes as u64);
        if bytes > lease.bytes() {
            lease.resize("expert slots", bytes)?;
        }
        self.complete.store(slots >= self.index.experts(), Ordering::Relaxed);
        let mut state = self.lock();
        let done = loop {
            match state.resize(slots, &self.index) {
                Ok(false) => {}
                Ok(true) => break Ok(()),
                Err(error) => break Err(error),
            }
            let woken = self.changed.wait_timeout(state, POLL);
            state = woken.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        };
        let slots = state.slots;
        drop(state);
        self.complete.store(slots >= self.index.experts(), Ordering::Relaxed);
        lease.resize("expert slots", (slots as u64).saturating_mul(self.index.slot_bytes as u64))?;
        done
    }

    fn reads(&self) -> Reads {
        let cached = self.buffered || self.in_memory || self.complete.load(Ordering::Relaxed);
        if cached { Reads::Cached } else { Reads::Direct }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes as many readers as there are pieces to read of `experts` experts: each that is woken takes a core from computing for
    /// a moment. To be called without the lock, which they would wait for.
    fn wake_readers(&self, experts: usize) {
        (0..experts * self.index.piece_bytes.len()).for_each(|_| self.work.notify_one());
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExpertCache").field("slots", &self.lock().slots).finish_non_exhaustive()
    }
}

/// Slots make room for sessions, whose needs come first: with fewer slots, more is read.
impl Reserve for Shared {
    fn give_back(&self, bytes: u64) -> bool {
        let mut lease = self.lease();
        let slot = (self.index.slot_bytes as u64).max(1);
        let slots = lease.bytes().saturating_sub(bytes) / slot;
        slots >= self.least as u64
            && lease.bytes() >= bytes
            && self.resize(&mut lease, slots as usize).is_ok()
    }
}

impl ExpertCache {
    /// A cache of the experts in `index`, read from `source`; its slots are part of `budget`.
    pub(crate) fn new(
        index: ExpertIndex,
        source: Arc<Source>,
        options: CacheOptions,
        budget: &Arc<Budget>,
    ) -> Result<ExpertCache> {
        let bytes = (options.slots as u64).saturating_mul(index.slot_bytes as u64);
        let lease = Mutex::new(budget.lease("expert slots", bytes)?);
        let policy = options.policy.start(index.layers.len(), index.n_experts);
        let state = Mutex::new(State::new(options.slots, &index, policy)?);
        let (work, changed) = (Condvar::new(), Condvar::new());
        let complete = AtomicBool::new(options.slots >= index.experts());
        let (wanted, least, budget) = (AtomicUsize::new(options.slots), options.least, Arc::clone(budget));
        let in_memory = source.lies_in_memory();
        let shared = Arc::new(Shared {
            index,
            source,
            buffered: options.buffered,
            in_memory,
            fetch_buffers: fetch::Buffers::default(),
            complete,
            wanted,
            least,
            lease,
            budget,
            state,
            work,
            changed,
        });
        let reserve: Weak<Shared> = Arc::downgrade(&shared);
        shared.budget.set_reserve(reserve);
        Ok(ExpertCache { readers: Readers::start(&shared, options.readers)?, shared })
    }

    pub(crate) fn index(&self) -> &ExpertIndex {
        &self.shared.index
    }

    /// Starts loading those of `experts` that are absent, as far as slots can be had without waiting, but for those of a
    /// single token that are to be [fetched](Self::fetch). `experts` are the choices of `tokens` tokens; the pass acquires
    /// each of them.
    pub(crate) fn request(&self, layer: usize, tokens: usize, experts: impl Iterator<Item = usize>) {
        let mut state = self.shared.lock();
        state.turn(layer, self.shared.index.n_experts, tokens, experts);
        let awaited: Vec<ExpertId> = state.awaited().collect();
        let mut loads = 0;
        for id in awaited {
            // An earlier pass's failure: read again.
            if matches!(state.entries.get(id), Some(Entry::Failed(_))) {
                state.entries.remove(id);
            }
            match state.entries.get_mut(id) {
                Some(Entry::Ready(_) | Entry::Raw(_)) => state.stats.hits += 1,
                Some(Entry::Loading(loading)) => {
                    loading.again = true;
                    state.stats.misses += 1;
                }
                Some(Entry::Failed(_)) => {}
                // To be fetched.
                None if self.shared.in_memory && tokens == 1 => {}
                None => loads += usize::from(state.load_chosen(id, Urgency::Chosen)),
            }
        }
        drop(state);
        self.shared.wake_readers(loads);
    }

    /// Starts loading those of the next `most` requested experts for which there was no slot before.
    pub(crate) fn remind(&self, most: usize) {
        let mut state = self.shared.lock();
        let mut awaited: Vec<ExpertId> = state.awaited().take(most).collect();
        awaited.retain(|id| !state.entries.contains(*id));
        let loads = awaited.into_iter().take_while(|id| state.load_chosen(*id, Urgency::Chosen)).count();
        drop(state);
        self.shared.wake_readers(loads);
    }

    /// Starts loading those of `experts` that are absent, which a layer is expected to choose when its turn comes,
    /// as far as slots can be had that will not be needed sooner.
    pub(crate) fn guess(&self, layer: usize, experts: &[usize]) {
        let mut state = self.shared.lock();
        if state.awaited().any(|id| !state.entries.contains(id)) {
            return; // first what has been chosen
        }
        state.revise(layer, experts);
        let mut absent: Vec<ExpertId> = experts.iter().map(|expert| (layer, *expert)).collect();
        absent.retain(|id| !state.entries.contains(*id));
        let loads = absent.into_iter().take_while(|id| state.load(*id, Urgency::Guess)).count();
        drop(state);
        self.shared.wake_readers(loads);
    }

    /// Whether some of the threads that read have nothing to do.
    pub(crate) fn has_idle_reader(&self) -> bool {
        let state = self.shared.lock();
        state.queue.is_empty() && state.reading.inside() < self.readers.count()
    }

    /// Threads that read.
    pub(crate) fn readers(&self) -> usize {
        self.readers.count()
    }

    /// Memory for [`read_only`](Self::read_only): that of a slot, whose expert is evicted. Waits for what is being read; `None` if
    /// all slots are held or lent.
    pub(crate) fn lend_slot(&self, _between_passes: &Team<'_>) -> Option<LentSlot<'_>> {
        let mut state = self.shared.lock();
        loop {
            if let Some(slot) = state.lend() {
                return Some(LentSlot { shared: &self.shared, slot });
            }
            if !state.is_loading() {
                return None;
            }
            let woken = self.shared.changed.wait_timeout(state, POLL);
            state = woken.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    /// Reads a piece of an expert as the readers do, for no pass. Returns its bytes.
    pub(crate) fn read_only(
        &self,
        layer: usize,
        expert: usize,
        piece: usize,
        lent: &mut LentSlot<'_>,
    ) -> Result<u64> {
        let (memory, piece) = (lent.slot.get_mut(piece), &self.shared.index.layers[layer].pieces[piece]);
        let (reads, offset) = (self.shared.reads(), piece.place(expert));
        if let Some(memory) = memory {
            self.shared.source.read_range(reads, piece.shard, offset, piece.bytes, &mut memory.slab)?;
        }
        Ok(piece.bytes as u64)
    }

    /// Whether reads go past the page cache.
    pub(crate) fn reads_directly(&self) -> bool {
        self.shared.reads() == Reads::Direct && self.shared.source.reads_directly()
    }

    /// Whether there is a slot for every expert.
    pub(crate) fn is_complete(&self) -> bool {
        self.shared.complete.load(Ordering::Relaxed)
    }

    /// Slots in all.
    pub(crate) fn slots(&self) -> usize {
        self.shared.lock().slots
    }

    /// Lets the pass in progress hold some experts at once, up to `most`, as many as half of the slots; the cache keeps slots for
    /// them as long as this lives.
    pub(crate) fn hold(&self, most: usize) -> Hold<'_> {
        let mut state = self.shared.lock();
        state.held = (state.slots / MIN_SLOTS_PER_CHOICE).clamp(1, most);
        Hold { shared: &self.shared, experts: state.held }
    }

    /// Changes the number of slots, evicting what there is no room for. Waits for reads in progress and for experts that are
    /// held.
    pub(crate) fn resize(&self, slots: usize) -> Result<()> {
        self.shared.resize(&mut self.shared.lease(), slots)?;
        self.shared.wanted.store(slots, Ordering::Relaxed);
        Ok(())
    }

    /// Takes back slots that were given up, as far as the budget allows by now.
    pub(crate) fn regrow(&self) {
        let shared = &*self.shared;
        let mut lease = shared.lease();
        let slot = (shared.index.slot_bytes as u64).max(1);
        let (now, wanted) = (lease.bytes() / slot, shared.wanted.load(Ordering::Relaxed) as u64);
        let slots = wanted.min(now + shared.budget.free() / slot);
        if slots > now {
            // If somebody was faster, there will be another time.
            let _ = shared.resize(&mut lease, slots as usize);
        }
    }

    /// Fills the cache with every expert, in file order. For a budget that holds them all.
    pub(crate) fn preload(
        &self,
        team: &Team<'_>,
        cancel: &CancelFlag,
        loaded: &mut dyn FnMut(u64),
    ) -> Result<()> {
        for layer in 0..self.shared.index.layers.len() {
            // One layer ahead keeps the readers busy while this thread waits.
            for ahead in [layer, layer + 1] {
                if ahead < self.shared.index.layers.len() {
                    let mut state = self.shared.lock();
                    let mut loads = 0;
                    for id in (0..self.shared.index.n_experts).map(|expert| (ahead, expert)) {
                        if !state.entries.contains(id) {
                            loads += usize::from(state.load(id, Urgency::Chosen));
                        }
                    }
                    drop(state);
                    self.shared.wake_readers(loads);
                }
            }
            for expert in 0..self.shared.index.n_experts {
                self.acquire((layer, expert), team, cancel)?;
                loaded(self.shared.index.layers[layer].expert_bytes());
            }
        }
        // Loading is not a generation's miss.
        let mut state = self.shared.lock();
        state.stats = ExpertStats::default();
        state.reading = Default::default();
        Ok(())
    }

    /// Counters since the model was opened, and the present fill.
    pub(crate) fn stats(&self) -> ExpertStats {
        let state = self.shared.lock();
        ExpertStats {
            slots: state.slots as u64,
            resident: state.resident as u64,
            reading: state.reading.total(),
            ..state.stats.clone()
        }
    }
}

/// A slot that no expert is in, until this is dropped.
pub(crate) struct LentSlot<'c> {
    shared: &'c Shared,
    slot: Slot,
}

impl Drop for LentSlot<'_> {
    fn drop(&mut self) {
        self.shared.lock().take_back(std::mem::take(&mut self.slot));
        self.shared.changed.notify_all();
    }
}

/// Slots that a pass can count on, see [`ExpertCache::hold`].
pub(crate) struct Hold<'c> {
    shared: &'c Shared,
    /// How many.
    pub(crate) experts: usize,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.shared.lock().held = 0;
        self.shared.changed.notify_all();
    }
}

/// Slots per chosen expert that a cache needs at least: the experts being computed, and as many on their way.
pub(crate) const MIN_SLOTS_PER_CHOICE: usize = 2;
