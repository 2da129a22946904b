//! Slots and their states.

use std::ops::Range;
use std::sync::Arc;

use super::entries::{Entries, Entry, Loading};
use super::policy::Policy;
use super::queue::{Job, Queue, Urgency};
use super::stats::{ExpertStats, Stopwatch};
use crate::arena::{Arena, Slab};
use crate::model::expert_index::{ExpertIndex, LayerExperts, Part};
use crate::tensor::matrix::Matrix;
use crate::{Error, Result};

/// Layer and expert number.
pub(crate) type ExpertId = (usize, usize);

/// The memory of a slot, by piece.
pub(super) type Slot = Vec<PieceMemory>;

/// The memory of a piece of an expert, and how it lies there.
pub(crate) struct PieceMemory {
    pub(super) slab: Slab,
    /// Where it begins: what was read may begin with the rest of a block.
    pub(super) at: usize,
    /// It lies as in the file, and is to be rearranged before it can be computed with.
    pub(super) raw: bool,
}

impl PieceMemory {
    fn new(slab: Slab) -> PieceMemory {
        PieceMemory { slab, at: 0, raw: false }
    }

    /// Bytes of the piece.
    pub(super) fn get(&self, range: Range<usize>) -> &[u8] {
        self.slab.get(self.at + range.start..self.at + range.end).unwrap_or(&[])
    }
}

/// The weights of one expert, complete, in memory.
pub(crate) struct ExpertSlot {
    pieces: Slot,
}

impl ExpertSlot {
    /// One of its matrices; `experts` describes those of its layer.
    pub(crate) fn matrix(&self, experts: &LayerExperts, part: Part) -> Matrix<'_> {
        let m = experts.part(part);
        let data = self.pieces.get(m.piece).map_or(&[][..], |piece| piece.get(m.range()));
        Matrix { dtype: m.dtype, layout: m.layout, rows: m.rows, cols: m.cols, data }
    }
}

/// The layer that the pass in progress has come to, and its experts that are still to be computed.
#[derive(Default)]
struct Awaited {
    layer: usize,
    /// Of the pass's tokens, those that chose each expert; 0 once it was acquired.
    uses: Vec<u32>,
}

impl Awaited {
    fn contains(&self, (layer, expert): ExpertId) -> bool {
        layer == self.layer && self.uses.get(expert).is_some_and(|&uses| uses > 0)
    }
}

pub(super) struct State {
    pub(super) entries: Entries,
    pub(super) queue: Queue,
    policy: Box<dyn Policy>,
    awaited: Awaited,
    pub(super) stats: ExpertStats,
    /// Time during which any reader was at work.
    pub(super) reading: Stopwatch,
    /// Slots that are in use or free.
    pub(super) slots: usize,
    /// Entries that are [`Entry::Ready`], [`Entry::Raw`] or being rearranged.
    pub(super) resident: usize,
    free: Vec<Slot>,
    /// Memory to rearrange an expert in, unless some is being; `None` too if none needs to be.
    spare: Option<Slot>,
    /// Slots of a larger budget, their memory given back.
    retired: Vec<Slot>,
    /// Experts that were requested for a guess, until their layer's turn.
    guessed: Vec<ExpertId>,
    /// Slots that the pass in progress may hold at once: fewer will not do.
    pub(super) held: usize,
    /// Nothing more is to be read.
    pub(super) closed: bool,
}

impl State {
    pub(super) fn new(slots: usize, index: &ExpertIndex, policy: Box<dyn Policy>) -> Result<State> {
        // Of the same mapping as the others, whose place it takes in turn.
        let spares = usize::from(index.spare_bytes() > 0);
        let mut free = new_slots(slots + spares, index)?;
        let spare = if spares > 0 { free.pop() } else { None };
        Ok(State {
            entries: Entries::new(index.layers.len(), index.n_experts),
            queue: Queue::default(),
            policy,
            awaited: Awaited::default(),
            stats: ExpertStats::default(),
            reading: Stopwatch::default(),
            slots,
            resident: 0,
            free,
            spare,
            retired: Vec::new(),
            guessed: Vec::new(),
            held: 0,
            closed: false,
        })
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
        self.settle_guesses(layer);
    }

    /// The layer's turn has come: what was guessed for it has proved right or wrong.
    fn settle_guesses(&mut self, layer: usize) {
        for id in std::mem::take(&mut self.guessed) {
            if id.0 != layer {
                self.guessed.push(id);
                continue;
            }
            let chosen = self.awaited.contains(id);
            match self.entries.get(id) {
                Some(Entry::Ready(_) | Entry::Raw(_)) if chosen => self.stats.look_ahead.on_time += 1,
                Some(Entry::Ready(_) | Entry::Raw(_)) => self.stats.look_ahead.wasted += 1,
                Some(Entry::Loading(_)) if chosen => {
                    self.stats.look_ahead.late += 1;
                    self.queue.hurry(id);
                }
                Some(Entry::Loading(_)) => {
                    let withdrawn = self.withdraw(id);
                    self.stats.look_ahead.wasted += u64::from(!withdrawn);
                }
                _ => {}
            }
        }
    }

    /// Takes back a guess, if nobody reads any of it yet; returns whether it could.
    fn withdraw(&mut self, id: ExpertId) -> bool {
        let Some(Entry::Loading(loading)) = self.entries.get(id) else { return false };
        let Some(slot) = self.queue.withdraw(id, loading.arrived.len()) else { return false };
        self.stats.look_ahead.withdrawn += 1;
        self.entries.remove(id);
        self.policy.removed(id);
        self.free.push(slot);
        true
    }

    /// Takes back what was guessed for a layer and is no longer, as far as nobody reads it yet.
    pub(super) fn revise(&mut self, layer: usize, guess: &[usize]) {
        for id in std::mem::take(&mut self.guessed) {
            if id.0 != layer || guess.contains(&id.1) || !self.withdraw(id) {
                self.guessed.push(id);
            }
        }
    }

    /// The experts that the pass in progress has yet to compute, in the order that it will.
    pub(super) fn awaited(&self) -> impl Iterator<Item = ExpertId> {
        let ids = (0..self.awaited.uses.len()).map(|expert| (self.awaited.layer, expert));
        ids.filter(|id| self.awaited.contains(*id))
    }

    /// Notes that the expert is being computed.
    pub(super) fn acquired(&mut self, (layer, expert): ExpertId) {
        if layer == self.awaited.layer && expert < self.awaited.uses.len() {
            self.awaited.uses[expert] = 0;
        }
    }

    /// Starts loading an absent expert if a slot can be had; returns whether it could.
    pub(super) fn load(&mut self, id: ExpertId, urgency: Urgency) -> bool {
        let Some(slot) = self.take_slot(urgency) else { return false };
        self.policy.inserted(id);
        self.entries.insert(id, Entry::Loading(Box::new(Loading::of(slot.len()))));
        if urgency == Urgency::Guess {
            self.stats.look_ahead.requested += 1;
            self.guessed.push(id);
        }
        self.queue.push(jobs(id, slot), urgency);
        true
    }

    /// As [`load`](Self::load), of an expert that was chosen.
    pub(super) fn load_chosen(&mut self, id: ExpertId, urgency: Urgency) -> bool {
        let loads = self.load(id, urgency);
        self.stats.misses += u64::from(loads);
        loads
    }

    /// A slot: a free one, or that of the policy's victim.
    fn take_slot(&mut self, urgency: Urgency) -> Option<Slot> {
        self.free.pop().or_else(|| self.evict(urgency))
    }

    /// A slot for something else than an expert, to be [taken back](Self::take_back).
    pub(super) fn lend(&mut self) -> Option<Slot> {
        self.take_slot(Urgency::Urgent)
    }

    pub(super) fn take_back(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    /// Takes the slot of an expert that is not held and that the pass in progress will not need, in this layer or, as far as
    /// it has been guessed, in those after it. If the need is `Urgent`, rather than none that of the guess made last, or of the
    /// expert of this layer that the pass needs last.
    fn evict(&mut self, urgency: Urgency) -> Option<Slot> {
        let (entries, awaited, guessed) = (&self.entries, &self.awaited, &self.guessed);
        // The lock is held, and clones are made only under it: a count of one stays one.
        let idle = |id: &ExpertId| match entries.get(*id) {
            Some(Entry::Ready(slot)) => Arc::strong_count(slot) == 1,
            Some(Entry::Raw(_)) => true,
            _ => false,
        };
        let may_go = |id| idle(&id) && !awaited.contains(id) && !guessed.contains(&id);
        let victim = self.policy.victim(&may_go).or_else(|| {
            // Experts are computed in the order of their numbers.
            let of_layer = (0..awaited.uses.len()).rev().map(|expert| (awaited.layer, expert));
            let urgent = urgency == Urgency::Urgent;
            guessed.iter().rev().copied().chain(of_layer).find(|id| urgent && idle(id))
        })?;
        if let Some(place) = self.guessed.iter().position(|id| *id == victim) {
            self.guessed.swap_remove(place);
            self.stats.look_ahead.evicted += 1;
        }
        self.drop_entry(victim)
    }

    /// Takes the slot of an expert that is in memory and not held.
    fn drop_entry(&mut self, id: ExpertId) -> Option<Slot> {
        self.policy.removed(id);
        let pieces = match self.entries.remove(id)? {
            Entry::Ready(slot) => Arc::into_inner(slot)?.pieces,
            Entry::Raw(pieces) => pieces,
            _ => return None,
        };
        self.stats.evictions += 1;
        self.resident -= 1;
        Some(pieces)
    }

    /// Begins to load what the pass has chosen and is absent, as far as slots can be had, and takes that from the queue: the
    /// caller reads it and brings it back.
    pub(super) fn take_awaited(&mut self) -> Vec<Job> {
        let awaited: Vec<ExpertId> = self.awaited().filter(|id| !self.entries.contains(*id)).collect();
        let first = self.queue.chosen();
        for id in awaited {
            if !self.load_chosen(id, Urgency::Chosen) {
                break;
            }
        }
        let jobs = self.queue.take_chosen(first);
        if !jobs.is_empty() {
            self.reading.enter();
        }
        jobs
    }

    /// Takes back a piece from a reader. The expert becomes ready, raw or failed with the last of its pieces: before, some
    /// reader still owns some of the slot. Returns whether it is to be read again instead.
    pub(super) fn arrived(&mut self, job: Job, result: Result<u64>) -> bool {
        let Some(Entry::Loading(loading)) = self.entries.get_mut(job.id) else { return false };
        loading.arrived[job.piece] = Some(job.bytes);
        match result {
            Ok(read) => self.stats.bytes_read += read,
            Err(error) => drop(loading.failed.get_or_insert(error)),
        }
        if loading.arrived.iter().any(Option::is_none) {
            return false;
        }
        let pieces: Slot = loading.arrived.iter_mut().filter_map(Option::take).collect();
        let again = std::mem::take(&mut loading.again);
        match loading.failed.take() {
            None => {
                self.resident += 1;
                let raw = pieces.iter().any(|piece| piece.raw);
                let entry =
                    if raw { Entry::Raw(pieces) } else { Entry::Ready(Arc::new(ExpertSlot { pieces })) };
                self.entries.insert(job.id, entry);
            }
            Some(_) if again => {
                self.queue.push(jobs(job.id, pieces), Urgency::Chosen);
                return true;
            }
            Some(error) => self.fail(job.id, pieces, error),
        }
        false
    }

    fn fail(&mut self, id: ExpertId, pieces: Slot, error: Error) {
        self.policy.removed(id);
        self.guessed.retain(|guess| *guess != id);
        self.free.push(pieces);
        self.entries.insert(id, Entry::Failed(Box::new(error)));
    }

    /// Takes one of a layer's `experts` that is raw, and the memory to rearrange it in; until it is
    /// [brought back](Self::arranged), it is on its way.
    pub(super) fn take_raw(&mut self, layer: usize, experts: &[usize]) -> Option<(ExpertId, Slot, Slot)> {
        let mut ids = experts.iter().map(|&expert| (layer, expert));
        let id = ids.find(|id| matches!(self.entries.get(*id), Some(Entry::Raw(_))))?;
        let spare = self.spare.take()?;
        match self.entries.insert(id, Entry::Loading(Box::new(Loading::of(spare.len())))) {
            Some(Entry::Raw(pieces)) => Some((id, pieces, spare)),
            _ => None,
        }
    }

    /// Takes back what was taken to be rearranged.
    pub(super) fn arranged(&mut self, id: ExpertId, pieces: Slot, spare: Slot, result: Result<()>) {
        self.spare = Some(spare);
        match result {
            Ok(()) => drop(self.entries.insert(id, Entry::Ready(Arc::new(ExpertSlot { pieces })))),
            Err(error) => {
                self.resident -= 1;
                self.fail(id, pieces, error);
            }
        }
    }

    /// Brings the number of slots nearer to `wanted`; returns whether it is that now. If not, experts are held, to be held or
    /// on their way.
    pub(super) fn resize(&mut self, wanted: usize, index: &ExpertIndex) -> Result<bool> {
        while self.slots > wanted.max(self.held) {
            let Some(mut slot) = self.take_slot(Urgency::Urgent) else { return Ok(false) };
            slot.iter_mut().for_each(|piece| piece.slab.discard());
            self.retired.push(slot);
            self.slots -= 1;
        }
        if self.slots > wanted {
            return Ok(false);
        }
        let again = self.retired.len().min(wanted - self.slots);
        let fresh = new_slots(wanted - self.slots - again, index)?;
        self.free.extend(self.retired.drain(self.retired.len() - again..));
        self.free.extend(fresh);
        self.slots = wanted;
        Ok(true)
    }

    /// Whether any expert is on its way.
    pub(super) fn is_loading(&self) -> bool {
        self.entries.iter().any(|e| matches!(e, Entry::Loading(_)))
    }
}

/// What is to be read for an expert.
fn jobs(id: ExpertId, slot: Slot) -> impl Iterator<Item = Job> {
    slot.into_iter().enumerate().map(move |(piece, bytes)| Job { id, piece, bytes })
}

/// Memory for slots.
fn new_slots(slots: usize, index: &ExpertIndex) -> Result<Vec<Slot>> {
    if slots == 0 {
        return Ok(Vec::new());
    }
    let refuse = || Error::Budget {
        what: format!("{slots} expert slots"),
        needed: (slots as u64).saturating_mul(index.slot_bytes as u64),
        available: 0,
    };
    let mut arena = Arena::new(slots.checked_mul(index.slot_bytes).ok_or_else(refuse)?, "expert slots")?;
    // Pieces are whole pages, so each begins at one, as direct reads need.
    let mut slot =
        || index.piece_bytes.iter().map(|bytes| arena.take(*bytes).map(PieceMemory::new)).collect();
    let mut slots: Vec<Slot> = std::iter::from_fn(&mut slot).take(slots).collect();
    slots.reverse(); // handed out from the end: ascending addresses
    Ok(slots)
}
