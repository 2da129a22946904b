//! Looking ahead: which experts the next layers are going to choose, guessed before this one has finished, so that reading
//! them can begin. A guess decides what is read early, never what is computed.

use crate::Result;
use crate::forward::clock::Stage;
use crate::forward::{Pass, Scratch};

/// Layers that guesses go ahead: the next one in any case, a farther one if some reader has nothing to do, so that an expert
/// can be read while several layers are computed. Every look costs reading a router.
const AHEAD: [usize; 2] = [1, 4];

/// Of the choices guessed for a single token in a layer so far ahead, how many are read in advance: the surest. The others are too
/// often wrong, and what is read in vain keeps storage from what is needed.
pub(crate) fn guesses_of_one_token(top_k: usize, ahead: usize) -> usize {
    if ahead == 1 { top_k - top_k / 4 } else { top_k.div_ceil(2) }
}

impl Pass<'_> {
    /// Applies routers of the next layers to the residual stream as it is after attention, that is without what the experts of
    /// `layer` and those between are still to add, and starts reading what they choose.
    pub(super) fn guess_next(&mut self, layer: usize, s: &mut Scratch) -> Result<()> {
        self.guess.clear();
        if !self.look_ahead {
            return Ok(());
        }
        self.clock.lap(Stage::Norm);
        for ahead in AHEAD {
            let next = layer + ahead;
            let one = s.choices.len() == self.h.top_k;
            if one && self.cache.fetches() {
                break; // nothing to wait for, so nothing to begin early
            }
            if next >= self.h.n_layers || ahead > 1 && !(one && self.cache.has_idle_reader()) {
                break;
            }
            // The choices of the layer in progress stand.
            std::mem::swap(&mut s.choices, &mut s.guesses);
            let done = self.apply_router(next, s);
            std::mem::swap(&mut s.choices, &mut s.guesses);
            if done.is_err() {
                break; // of numbers that this token may never come to
            }
            if one {
                // Of a prompt's tokens, nearly all experts will be needed.
                s.guesses
                    .sort_unstable_by(|a, b| b.weight.total_cmp(&a.weight).then(a.expert.cmp(&b.expert)));
                s.guesses.truncate(guesses_of_one_token(self.h.top_k, ahead));
            }
            let mut guess: Vec<usize> = s.guesses.iter().map(|c| c.expert).collect();
            guess.sort_unstable();
            guess.dedup();
            self.cache.guess(next, &guess);
            if ahead == 1 {
                self.guess = guess;
            }
            self.clock.bytes(Stage::Router, self.weights.layers[next].router.bytes());
        }
        self.clock.lap(Stage::Router);
        Ok(())
    }

    /// Starts reading what was guessed for the layer after `layer`, as far as there is room by now.
    pub(super) fn request_guess(&self, layer: usize) {
        if !self.guess.is_empty() {
            self.cache.guess(layer + 1, &self.guess);
        }
    }
}
