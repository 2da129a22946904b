//! What a cache holds while reads take time: the engine's rules (`crate::experts`), without the weights.

use super::machine::{Machine, Read};
use super::replay::{Accesses, Cache};
use super::trace::Shape;
use crate::experts::queue::{Job, Urgency};
use crate::experts::{ExpertId, LookAheadStats};

/// Pieces that an expert is read in: its matrices.
const PARTS: usize = 3;

/// Experts that are about to be computed.
pub(super) struct Taken {
    pub(super) experts: usize,
    /// Bytes of those among them that are to be rearranged first.
    pub(super) raw_bytes: u64,
}

/// A cache and the reads that fill it.
pub(super) struct Contents<'t> {
    cache: Cache<'t>,
    /// Of each expert, the parts that are still on their way. Inside the cache and 0: in memory.
    missing_parts: Vec<u8>,
    /// Which have not been computed with since they were read, and are to be rearranged before they are.
    raw: Vec<bool>,
    loading: usize,
    /// The layer that the token has come to, and which of its experts are chosen and not yet acquired.
    layer: usize,
    uses: Vec<u32>,
    /// Which are being computed.
    held: Vec<bool>,
    /// Experts that were requested for a layer whose turn has not come.
    guessed: Vec<ExpertId>,
    pub(super) counts: Accesses,
    pub(super) look_ahead: LookAheadStats,
}

impl<'t> Contents<'t> {
    pub(super) fn new(cache: Cache<'t>) -> Contents<'t> {
        let shape = cache.shape;
        Contents {
            missing_parts: vec![0; shape.experts()],
            raw: vec![false; shape.experts()],
            loading: 0,
            layer: 0,
            uses: vec![0; shape.n_experts],
            held: vec![false; shape.n_experts],
            guessed: Vec::new(),
            counts: Accesses::default(),
            look_ahead: LookAheadStats::default(),
            cache,
        }
    }

    fn shape(&self) -> &'t Shape {
        self.cache.shape
    }

    fn number(&self, (layer, expert): ExpertId) -> usize {
        layer * self.shape().n_experts + expert
    }

    fn is_ready(&self, id: ExpertId) -> bool {
        let i = self.number(id);
        self.cache.inside[i] && self.missing_parts[i] == 0
    }

    /// A layer of a prompt: its reads take no time. Nothing is on its way.
    pub(super) fn prompt_turn(&mut self, layer: usize, tokens: usize, choices: &[u32]) {
        self.note_turn(layer, choices);
        for &expert in choices {
            let i = self.number((layer, expert as usize));
            self.raw[i] = false;
        }
        let mut uses = std::mem::take(&mut self.uses);
        self.cache.turn(layer, tokens, &mut uses, &mut Accesses::default());
        self.uses = uses;
    }

    fn note_turn(&mut self, layer: usize, choices: &[u32]) {
        self.layer = layer;
        self.uses.fill(0);
        self.held.fill(false);
        for &expert in choices {
            self.uses[expert as usize] += 1;
        }
    }

    /// A token has come to a layer and chosen there: what was guessed for it is settled, what is absent is requested.
    pub(super) fn turn(&mut self, layer: usize, choices: &[u32], machine: &mut Machine) {
        self.note_turn(layer, choices);
        self.cache.policy.turn(layer, 1, &self.uses);
        self.settle_guesses(machine);
        for id in choices.iter().map(|&expert| (layer, expert as usize)) {
            if self.is_ready(id) {
                self.counts.hits += 1;
            } else if self.cache.inside[self.number(id)] {
                self.counts.misses += 1;
            } else {
                self.load_chosen(id, Urgency::Chosen, machine);
            }
        }
    }

    fn settle_guesses(&mut self, machine: &mut Machine) {
        for id in std::mem::take(&mut self.guessed) {
            if id.0 != self.layer {
                self.guessed.push(id);
                continue;
            }
            let account = &mut self.look_ahead;
            let i = id.0 * self.cache.shape.n_experts + id.1;
            match (self.uses[id.1] > 0, self.missing_parts[i] == 0) {
                (true, true) => account.on_time += 1,
                (false, true) => account.wasted += 1,
                (true, false) => {
                    account.late += 1;
                    machine.queue.hurry(id);
                }
                (false, false) if machine.queue.withdraw(id, PARTS).is_some() => {
                    account.withdrawn += 1;
                    self.missing_parts[i] = 0;
                    self.loading -= 1;
                    self.cache.remove(id);
                }
                (false, false) => account.wasted += 1,
            }
        }
    }

    /// Starts loading those of `experts` that are absent, as long as there are slots that nobody needs sooner.
    pub(super) fn guess(&mut self, layer: usize, experts: &[usize], machine: &mut Machine) {
        let absent = |&(expert, &uses): &(usize, &u32)| {
            uses > 0 && !self.cache.inside[self.number((self.layer, expert))]
        };
        if self.uses.iter().enumerate().any(|choice| absent(&choice)) {
            return; // first what has been chosen
        }
        for id in experts.iter().map(|&expert| (layer, expert)) {
            if !self.cache.inside[self.number(id)] {
                if !self.load(id, Urgency::Guess, machine) {
                    return;
                }
                self.look_ahead.requested += 1;
                self.guessed.push(id);
            }
        }
    }

    /// Takes the chosen experts that are in memory and not yet computed, and requests those that are absent.
    pub(super) fn acquire(&mut self, choices: &[u32], machine: &mut Machine) -> Taken {
        let layer = self.layer;
        let left: Vec<usize> = choices.iter().map(|&e| e as usize).filter(|&e| self.uses[e] > 0).collect();
        let mut taken = Taken { experts: 0, raw_bytes: 0 };
        for &expert in &left {
            if self.is_ready((layer, expert)) {
                (self.uses[expert], self.held[expert]) = (0, true);
                taken.experts += 1;
                let i = self.number((layer, expert));
                if std::mem::take(&mut self.raw[i]) {
                    taken.raw_bytes += self.shape().expert_bytes[layer];
                }
            }
        }
        let urgency = if taken.experts == 0 { Urgency::Urgent } else { Urgency::Chosen };
        for expert in left {
            if self.uses[expert] > 0 && !self.cache.inside[self.number((layer, expert))] {
                self.load_chosen((layer, expert), urgency, machine);
            }
        }
        taken
    }

    /// Whether the token waits for experts of this layer.
    pub(super) fn awaits(&self) -> bool {
        self.uses.iter().any(|&uses| uses > 0)
    }

    fn load_chosen(&mut self, id: ExpertId, urgency: Urgency, machine: &mut Machine) {
        if self.load(id, urgency, machine) {
            self.counts.misses += 1;
        }
    }

    fn load(&mut self, id: ExpertId, urgency: Urgency, machine: &mut Machine) -> bool {
        if self.cache.free == 0 && !self.evict(urgency) {
            return false;
        }
        self.cache.insert(id);
        let i = self.number(id);
        self.missing_parts[i] = PARTS as u8;
        self.raw[i] = true;
        self.loading += 1;
        let parts = part_bytes(self.shape().expert_bytes[id.0]);
        let jobs = parts.into_iter().enumerate().map(|(piece, bytes)| Job { id, piece, bytes });
        machine.queue.push(jobs, urgency);
        machine.dispatch();
        true
    }

    /// Frees a slot by the engine's rules: none of what is held, on its way, chosen or guessed; if the need is `Urgent`, rather
    /// than none what was guessed or is needed last.
    fn evict(&mut self, urgency: Urgency) -> bool {
        let shape = self.cache.shape;
        let (layer, n) = (self.layer, shape.n_experts);
        let (parts, held, uses) = (&self.missing_parts, &self.held, &self.uses);
        let idle = |(l, e): ExpertId| parts[l * n + e] == 0 && !(l == layer && held[e]);
        let guessed = &self.guessed;
        let may_go = |id: ExpertId| idle(id) && !(id.0 == layer && uses[id.1] > 0) && !guessed.contains(&id);
        let inside = &self.cache.inside;
        let victim = self.cache.policy.victim(&may_go).or_else(|| {
            let of_layer = (0..n).rev().map(|expert| (layer, expert));
            let mut all = guessed.iter().copied().chain(of_layer);
            all.find(|&id| urgency == Urgency::Urgent && inside[id.0 * n + id.1] && idle(id))
        });
        let Some(victim) = victim else { return false };
        if let Some(place) = self.guessed.iter().position(|id| *id == victim) {
            self.guessed.swap_remove(place);
            self.look_ahead.evicted += 1;
        }
        self.cache.remove(victim);
        true
    }

    /// A part has come into its place.
    pub(super) fn arrived(&mut self, part: &Read) {
        let i = self.number(part.id);
        self.counts.bytes_read = self.counts.bytes_read.saturating_add(part.bytes);
        self.missing_parts[i] = self.missing_parts[i].saturating_sub(1);
        self.loading -= usize::from(self.missing_parts[i] == 0);
    }

    /// Whether anything is on its way.
    pub(super) fn is_loading(&self) -> bool {
        self.loading > 0
    }
}

/// The bytes of gate, up and down: a third each, as they have the same shape and, as a rule, type.
pub(super) fn part_bytes(expert_bytes: u64) -> [u64; PARTS] {
    let part = expert_bytes / 3;
    [expert_bytes - 2 * part, part, part]
}
