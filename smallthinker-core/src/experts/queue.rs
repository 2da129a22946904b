//! What the readers are to read next.

use std::collections::VecDeque;

use super::slot::{ExpertId, PieceMemory};

/// How much a pass needs an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// It may choose it.
    Guess,
    /// It has chosen it.
    Chosen,
    /// It has chosen it and can do nothing else before it has it.
    Urgent,
}

/// A piece of an expert to read, with the memory that it goes to. Pieces rather than experts, so that all readers help
/// with the one expert that a pass waits for.
pub(crate) struct Job<B = PieceMemory> {
    pub(crate) id: ExpertId,
    pub(crate) piece: usize,
    pub(crate) bytes: B,
}

/// First come, first served; but guesses come after all that has been chosen, those of nearer layers first.
pub(crate) struct Queue<B = PieceMemory> {
    chosen: VecDeque<Job<B>>,
    guesses: VecDeque<Job<B>>,
}

impl<B> Default for Queue<B> {
    fn default() -> Queue<B> {
        Queue { chosen: VecDeque::new(), guesses: VecDeque::new() }
    }
}

impl<B> Queue<B> {
    pub(crate) fn push(&mut self, jobs: impl Iterator<Item = Job<B>>, urgency: Urgency) {
        match urgency {
            Urgency::Guess => {
                for job in jobs {
                    let place = self.guesses.partition_point(|other| other.id.0 <= job.id.0);
                    self.guesses.insert(place, job);
                }
            }
            Urgency::Chosen | Urgency::Urgent => self.chosen.extend(jobs),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chosen.is_empty() && self.guesses.is_empty()
    }

    pub(crate) fn pop(&mut self) -> Option<Job<B>> {
        self.chosen.pop_front().or_else(|| self.guesses.pop_front())
    }

    /// Pieces that have been chosen.
    pub(crate) fn chosen(&self) -> usize {
        self.chosen.len()
    }

    /// Takes those from place `first` on.
    pub(crate) fn take_chosen(&mut self, first: usize) -> Vec<Job<B>> {
        self.chosen.drain(first.min(self.chosen.len())..).collect()
    }

    /// A guess has come true: its pieces that nobody reads yet move up.
    pub(crate) fn hurry(&mut self, id: ExpertId) {
        let (hurried, others) = std::mem::take(&mut self.guesses).into_iter().partition(|job| job.id == id);
        self.guesses = others;
        self.chosen.extend::<VecDeque<Job<B>>>(hurried);
    }

    /// Takes back a guess, if nobody reads any of its pieces yet.
    pub(crate) fn withdraw(&mut self, id: ExpertId, pieces: usize) -> Option<Vec<B>> {
        if self.guesses.iter().filter(|job| job.id == id).count() < pieces {
            return None;
        }
        let (jobs, others): (VecDeque<Job<B>>, _) =
            std::mem::take(&mut self.guesses).into_iter().partition(|job| job.id == id);
        self.guesses = others;
        // In the order that they were pushed in, that of the pieces.
        Some(jobs.into_iter().map(|job| job.bytes).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(id: ExpertId) -> impl Iterator<Item = Job<u64>> {
        (0..2).map(move |piece| Job { id, piece, bytes: piece as u64 })
    }

    fn ids(queue: &mut Queue<u64>) -> Vec<(usize, usize)> {
        std::iter::from_fn(|| queue.pop()).map(|job| (job.id.0, job.piece)).collect()
    }

    #[test]
    fn what_was_chosen_comes_first_and_then_guesses_of_nearer_layers() {
        let mut queue = Queue::default();
        for layer in [7, 4, 9, 5] {
            queue.push(pieces((layer, 0)), Urgency::Guess);
        }
        queue.push(pieces((3, 0)), Urgency::Chosen);
        assert_eq!(queue.withdraw((5, 0), 2), Some(vec![0, 1]));
        queue.hurry((9, 0));
        let expected = [3, 9, 4, 7].into_iter().flat_map(|layer| [(layer, 0), (layer, 1)]);
        assert_eq!(ids(&mut queue), expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_guess_is_withdrawn_only_as_a_whole() {
        let mut queue = Queue::default();
        queue.push(pieces((1, 1)), Urgency::Guess);
        assert_eq!(queue.pop().map(|job| job.piece), Some(0));
        assert_eq!(queue.withdraw((1, 1), 2), None);
        assert_eq!(ids(&mut queue), [(1, 1)]);
    }
}
