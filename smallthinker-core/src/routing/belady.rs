//! The policy that knows the future: no other reads fewer experts, as long as a cache holds what a layer needs at once.

use std::collections::{BTreeSet, VecDeque};

use super::trace::Trace;
use crate::experts::ExpertId;
use crate::experts::policy::Policy;

/// Evicts the expert whose next use is farthest.
pub(super) struct Belady {
    experts: usize,
    /// Turns at which each expert will be used, the next one first.
    uses: Vec<VecDeque<usize>>,
    /// The experts inside, by their next use.
    inside: BTreeSet<(usize, usize)>,
}

impl Belady {
    pub(super) fn new(trace: &Trace) -> Belady {
        let shape = trace.shape();
        let mut uses = vec![VecDeque::new(); shape.experts()];
        let turns = trace.passes().iter().flat_map(|pass| pass.layers(shape).enumerate());
        for (turn, (layer, choices)) in turns.enumerate() {
            for &expert in choices {
                let uses: &mut VecDeque<usize> = &mut uses[layer * shape.n_experts + expert as usize];
                if uses.back() != Some(&turn) {
                    uses.push_back(turn);
                }
            }
        }
        Belady { experts: shape.n_experts, uses, inside: BTreeSet::new() }
    }

    fn number(&self, (layer, expert): ExpertId) -> usize {
        layer * self.experts + expert
    }

    /// The expert by its next use.
    fn key(&self, i: usize) -> (usize, usize) {
        (self.uses[i].front().copied().unwrap_or(usize::MAX), i)
    }
}

impl Policy for Belady {
    fn turn(&mut self, layer: usize, _tokens: usize, uses: &[u32]) {
        for (expert, _) in uses.iter().enumerate().filter(|(_, uses)| **uses > 0) {
            let i = self.number((layer, expert));
            let was_inside = self.inside.remove(&self.key(i));
            self.uses[i].pop_front();
            if was_inside {
                self.inside.insert(self.key(i));
            }
        }
    }

    fn inserted(&mut self, id: ExpertId) {
        self.inside.insert(self.key(self.number(id)));
    }

    fn removed(&mut self, id: ExpertId) {
        self.inside.remove(&self.key(self.number(id)));
    }

    fn victim(&mut self, may_go: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let farthest_first = self.inside.iter().rev().map(|(_, i)| (i / self.experts, i % self.experts));
        farthest_first.into_iter().find(|id| may_go(*id))
    }
}
