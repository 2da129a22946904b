//! Guesses of the next layer's choices, of a set quality: a trace has none of its own.

use super::trace::{PassKind, Trace, TracedPass};
use crate::forward::look_ahead::guesses_of_one_token;
use crate::sample::SplitMix64;

/// Draws guesses from a generator that always begins in the same state.
pub(super) struct Guesses<'t> {
    trace: &'t Trace,
    decoded: Vec<&'t TracedPass>,
    share: f64,
    random: SplitMix64,
}

/// Draws of an expert that is not yet among the guesses, at most.
const TRIES: usize = 32;

impl<'t> Guesses<'t> {
    /// Guesses of which `share`, 0 to 1, are right.
    pub(super) fn new(trace: &'t Trace, share: f64) -> Guesses<'t> {
        let decoded = trace.passes().iter().filter(|pass| pass.kind() == PassKind::Decode).collect();
        Guesses { trace, decoded, share, random: SplitMix64::new(0) }
    }

    /// Guesses of `choices`, the choices of a token in `layer`, as many of them as the engine makes one layer ahead: each of some
    /// of them, taken at random, or instead of it what some other token has chosen there. In ascending order.
    pub(super) fn of(&mut self, layer: usize, choices: &[u32]) -> Vec<usize> {
        let wanted = guesses_of_one_token(choices.len(), 1);
        let mut sure = choices.to_vec();
        while sure.len() > wanted {
            sure.swap_remove((self.random.next_unit() * sure.len() as f64) as usize);
        }
        let mut guesses: Vec<u32> =
            sure.into_iter().filter(|_| self.random.next_unit() < self.share).collect();
        for _ in guesses.len()..wanted {
            let other = (0..TRIES).map(|_| self.other(layer));
            let wrong = |&expert: &u32| !choices.contains(&expert) && !guesses.contains(&expert);
            let found = other.flatten().find(wrong);
            guesses.extend(found);
        }
        guesses.sort_unstable();
        guesses.into_iter().map(|expert| expert as usize).collect()
    }

    /// What a token drawn from the trace has chosen in `layer`, one of its experts.
    fn other(&mut self, layer: usize) -> Option<u32> {
        let mut draw = |n: usize| (self.random.next_unit() * n as f64) as usize;
        let pass = self.decoded.get(draw(self.decoded.len()))?;
        let shape = self.trace.shape();
        let choices = pass.layers(shape).nth(layer)?;
        choices.get(draw(choices.len())).copied()
    }
}
