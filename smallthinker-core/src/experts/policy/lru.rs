//! Least recently used.

use super::Policy;
use crate::experts::slot::ExpertId;

/// The experts in the cache as a ring in order of their last use. Every operation takes constant time, except that a
/// search for a victim passes over those that must stay.
pub(super) struct Lru {
    experts: usize,
    /// `older[i]` and `newer[i]` are the neighbours of expert `i`, numbered through all layers; an expert that is not
    /// in the cache is its own neighbour. The last place is where the ring begins and ends: its newer neighbour
    /// is the oldest of all.
    older: Vec<usize>,
    newer: Vec<usize>,
}

impl Lru {
    pub(super) fn new(layers: usize, experts: usize) -> Lru {
        let alone: Vec<usize> = (0..=layers * experts).collect();
        Lru { experts, older: alone.clone(), newer: alone }
    }

    fn ends(&self) -> usize {
        self.older.len() - 1
    }

    fn unlink(&mut self, i: usize) {
        let (older, newer) = (self.older[i], self.newer[i]);
        (self.newer[older], self.older[newer]) = (newer, older);
        (self.older[i], self.newer[i]) = (i, i);
    }

    fn push_newest(&mut self, i: usize) {
        let (ends, newest) = (self.ends(), self.older[self.ends()]);
        (self.older[i], self.newer[i]) = (newest, ends);
        (self.newer[newest], self.older[ends]) = (i, i);
    }
}

impl Policy for Lru {
    fn turn(&mut self, layer: usize, _tokens: usize, uses: &[u32]) {
        for (expert, _) in uses.iter().enumerate().filter(|(_, uses)| **uses > 0) {
            let i = layer * self.experts + expert;
            if self.newer[i] != i {
                self.unlink(i);
                self.push_newest(i);
            }
        }
    }

    fn inserted(&mut self, (layer, expert): ExpertId) {
        self.push_newest(layer * self.experts + expert);
    }

    fn removed(&mut self, (layer, expert): ExpertId) {
        self.unlink(layer * self.experts + expert);
    }

    fn victim(&mut self, may_go: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let ends = self.ends();
        let oldest_first = std::iter::successors(Some(self.newer[ends]), |&i| Some(self.newer[i]));
        let ids = oldest_first.take_while(|&i| i != ends).map(|i| (i / self.experts, i % self.experts));
        ids.into_iter().find(|&id| may_go(id))
    }
}
