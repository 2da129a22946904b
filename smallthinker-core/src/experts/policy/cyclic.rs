//! Farthest expected use, for layers that come round in a cycle.

use super::Policy;
use crate::experts::slot::ExpertId;

/// Evicts the expert whose next use is expected last.
///
/// A layer's experts can be used only when it is the layer's turn, once per token, and every expert has a rate `p`: the
/// share of tokens that chose it, as a moving average. With `w` turns of other layers before its own, an expert is
/// expected to be used after `w + layers * (1 / p - 1)` turns: the layers' order decides between experts in steady
/// use, the rate between the others. Within a layer the lowest rate goes first, so a search looks at one expert per layer.
pub(super) struct Cyclic {
    layers: usize,
    experts: usize,
    /// Share of the latest tokens that chose each expert, 0 to 1.
    rates: Vec<f32>,
    inside: Vec<bool>,
    /// Of each layer, the expert inside with the lowest rate.
    rarest: Vec<Rarest>,
    /// Whose turn it is.
    layer: usize,
}

#[derive(Clone, Copy)]
enum Rarest {
    /// To be looked for.
    Unknown,
    /// The expert, or `None` if the layer has none inside.
    Known(Option<usize>),
}

/// What a token's choice weighs after the next token. Weights halve every 69 tokens.
const KEPT: f32 = 0.99;

/// The lowest rate taken for real: of an expert that no token chose lately, as good as never.
const LEAST_RATE: f32 = 1e-6;

impl Cyclic {
    pub(super) fn new(layers: usize, experts: usize) -> Cyclic {
        Cyclic {
            layers,
            experts,
            rates: vec![0.0; layers * experts],
            inside: vec![false; layers * experts],
            rarest: vec![Rarest::Known(None); layers],
            layer: 0,
        }
    }

    /// The expert of `layer` inside with the lowest rate, of those that `may_go`; the lower number among equals.
    fn find_rarest(&self, layer: usize, may_go: &dyn Fn(ExpertId) -> bool) -> Option<usize> {
        let from = layer * self.experts;
        let mut best = None;
        for (expert, &rate) in self.rates[from..from + self.experts].iter().enumerate() {
            let better = best.is_none_or(|(_, least)| rate < least);
            if better && self.inside[from + expert] && may_go((layer, expert)) {
                best = Some((expert, rate));
            }
        }
        best.map(|(expert, _)| expert)
    }

    /// Turns until the expert is used, as far as its rate tells.
    fn expected_wait(&self, layer: usize, expert: usize) -> f64 {
        // After its own turn, a layer waits for all the others.
        let others = (layer + self.layers - self.layer - 1) % self.layers;
        let rate = self.rates[layer * self.experts + expert].max(LEAST_RATE);
        others as f64 + self.layers as f64 * (1.0 / f64::from(rate) - 1.0)
    }
}

impl Policy for Cyclic {
    fn turn(&mut self, layer: usize, tokens: usize, uses: &[u32]) {
        let kept = KEPT.powf(tokens as f32);
        let share = (1.0 - kept) / tokens.max(1) as f32;
        let from = layer * self.experts;
        for (rate, &uses) in self.rates[from..from + self.experts].iter_mut().zip(uses) {
            *rate = kept * *rate + share * uses as f32;
        }
        self.layer = layer;
        self.rarest[layer] = Rarest::Unknown;
    }

    fn inserted(&mut self, (layer, expert): ExpertId) {
        self.inside[layer * self.experts + expert] = true;
        self.rarest[layer] = Rarest::Unknown;
    }

    fn removed(&mut self, (layer, expert): ExpertId) {
        self.inside[layer * self.experts + expert] = false;
        self.rarest[layer] = Rarest::Unknown;
    }

    fn victim(&mut self, may_go: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let mut best: Option<(ExpertId, f64)> = None;
        for layer in 0..self.layers {
            let rarest = match self.rarest[layer] {
                Rarest::Known(rarest) => rarest,
                Rarest::Unknown => self.find_rarest(layer, &|_| true),
            };
            self.rarest[layer] = Rarest::Known(rarest);
            let Some(mut expert) = rarest else { continue };
            // Cheapest first: `may_go` is asked only about experts that would win.
            let wins = |wait: f64| best.is_none_or(|(_, farthest)| wait > farthest);
            if !wins(self.expected_wait(layer, expert)) {
                continue;
            }
            if !may_go((layer, expert)) {
                let Some(other) = self.find_rarest(layer, may_go) else { continue };
                expert = other;
            }
            let wait = self.expected_wait(layer, expert);
            if wins(wait) {
                best = Some(((layer, expert), wait));
            }
        }
        best.map(|(id, _)| id)
    }
}
