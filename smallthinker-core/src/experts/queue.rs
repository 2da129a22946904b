//! What the readers are to read next.

use std::collections::VecDeque;

use super::slot::{ExpertId, Slot};
use crate::arena::Slab;
use crate::model::expert_index::Part;

/// How much a pass needs an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// It may choose it.
    Guess,
    /// It has chosen it.
    Chosen,
    /// It has chosen it and can do nothing else before it has it.
    Urgent,
}

/// A part of an expert to read, with the memory that it goes to. Parts rather than experts, so that all readers help
/// with the one expert that a pass waits for.
pub(super) struct Job {
    pub(super) id: ExpertId,
    pub(super) part: Part,
    pub(super) bytes: Slab,
}

/// First come, first served; but guesses come after all that has been chosen.
#[derive(Default)]
pub(super) struct Queue {
    chosen: VecDeque<Job>,
    guesses: VecDeque<Job>,
}

impl Queue {
    pub(super) fn push(&mut self, jobs: impl Iterator<Item = Job>, urgency: Urgency) {
        match urgency {
            Urgency::Guess => self.guesses.extend(jobs),
            Urgency::Chosen | Urgency::Urgent => self.chosen.extend(jobs),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Job> {
        self.chosen.pop_front().or_else(|| self.guesses.pop_front())
    }

    /// A guess has come true: its parts that nobody reads yet move up.
    pub(super) fn hurry(&mut self, id: ExpertId) {
        let (hurried, others) = std::mem::take(&mut self.guesses).into_iter().partition(|job| job.id == id);
        self.guesses = others;
        self.chosen.extend::<VecDeque<Job>>(hurried);
    }

    /// Takes back a guess that nobody reads yet.
    pub(super) fn withdraw(&mut self, id: ExpertId) -> Option<Slot> {
        if self.guesses.iter().filter(|job| job.id == id).count() < Part::ALL.len() {
            return None;
        }
        let (jobs, others): (VecDeque<Job>, _) =
            std::mem::take(&mut self.guesses).into_iter().partition(|job| job.id == id);
        self.guesses = others;
        // In the order that they were pushed in, that of the parts.
        let mut bytes = jobs.into_iter().map(|job| job.bytes);
        Some([bytes.next()?, bytes.next()?, bytes.next()?])
    }
}
