//! Expert choice: top-k of the router's logits, and the chosen experts' weights.

use crate::model::hparams::Gating;
use crate::{Error, Result};

/// An expert chosen for a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Choice {
    pub(crate) expert: usize,
    pub(crate) weight: f32,
}

/// Makes `chosen` the largest of `logits`, as many as it is long (the lower index first among equals), with weights that sum to
/// one, in ascending order of the expert number: the order in which outputs are added, for any batch.
///
/// Errors: [`Error::NotFinite`] naming the layer if a logit is NaN or infinite; [`Error::Internal`] if there are fewer logits
/// than places.
pub(crate) fn choose(logits: &[f32], gating: Gating, layer: usize, chosen: &mut [Choice]) -> Result<()> {
    if logits.iter().any(|x| !x.is_finite()) {
        return Err(Error::NotFinite { layer, what: "a router logit" });
    }
    if logits.len() < chosen.len() {
        let message = format!("{} of {} experts", chosen.len(), logits.len());
        return Err(Error::Internal { message });
    }
    // The best so far in order of rank, with logits for weights: few, so that moving them costs less than sorting all.
    let mut n = 0;
    for (expert, &logit) in logits.iter().enumerate() {
        let better = |than: &Choice| logit.total_cmp(&than.weight).is_gt();
        if n == chosen.len() && !chosen.last().is_some_and(better) {
            continue;
        }
        n = chosen.len().min(n + 1);
        let mut place = n - 1;
        while place > 0 && better(&chosen[place - 1]) {
            chosen[place] = chosen[place - 1];
            place -= 1;
        }
        chosen[place] = Choice { expert, weight: logit };
    }
    let best = chosen.first().map_or(0.0, |c| c.weight);
    for c in &mut *chosen {
        c.weight = match gating {
            Gating::Softmax => (c.weight - best).exp(),
            Gating::Sigmoid => 1.0 / (1.0 + (-c.weight).exp()),
        };
    }
    // In order of rank, so that the sum's rounding does not depend on expert numbers.
    let sum: f32 = chosen.iter().map(|c| c.weight).sum();
    // All sigmoids can underflow to zero; equal shares are the limit of the ratio.
    let equal = 1.0 / chosen.len() as f32;
    chosen.iter_mut().for_each(|c| c.weight = if sum > 0.0 { c.weight / sum } else { equal });
    chosen.sort_unstable_by_key(|c| c.expert);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choose(logits: &[f32], top_k: usize, gating: Gating, layer: usize) -> Result<Vec<Choice>> {
        let mut chosen = vec![Choice { expert: usize::MAX, weight: f32::NAN }; top_k];
        super::choose(logits, gating, layer, &mut chosen)?;
        Ok(chosen)
    }

    #[test]
    fn more_than_there_are_is_an_error() {
        assert!(choose(&[1.0, 2.0], 3, Gating::Softmax, 0).is_err());
        assert_eq!(choose(&[1.0, 2.0], 0, Gating::Softmax, 0).unwrap(), []);
        let all = choose(&[1.0, 2.0, 1.5], 3, Gating::Softmax, 0).unwrap();
        assert_eq!(all.iter().map(|c| c.expert).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn ties_go_to_the_lower_index_and_nan_is_named() {
        let chosen = choose(&[1.0, 3.0, 1.0, 3.0, -0.0, 0.0], 3, Gating::Softmax, 0).unwrap();
        assert_eq!(chosen.iter().map(|c| c.expert).collect::<Vec<_>>(), [0, 1, 3]);
        let error = choose(&[0.0, f32::NAN], 1, Gating::Sigmoid, 7).unwrap_err();
        assert!(error.to_string().contains("layer 7"), "{error}");
    }

    #[test]
    fn very_negative_logits_share_equally() {
        let chosen = choose(&[-200.0, -201.0, -300.0], 2, Gating::Sigmoid, 0).unwrap();
        assert!(chosen.iter().all(|c| c.weight == 0.5), "{chosen:?}");
    }

    proptest! {
        /// Against sorting all, with many equal logits.
        #[test]
        fn chooses_as_sorting_all_would(picks in prop::collection::vec(0usize..5, 1..70), k in 0usize..9, soft: bool) {
            let logits: Vec<f32> = picks.into_iter().map(|i| [-1.5, -0.0, 0.0, 0.25, 3.0][i]).collect();
            let gating = if soft { Gating::Softmax } else { Gating::Sigmoid };
            let k = k.min(logits.len());
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            order.truncate(k);
            let raw = |&i: &usize| match gating {
                Gating::Softmax => (logits[i] - logits[order[0]]).exp(),
                Gating::Sigmoid => 1.0 / (1.0 + (-logits[i]).exp()),
            };
            let sum: f32 = order.iter().map(raw).sum();
            let mut want: Vec<(usize, u32)> = order.iter().map(|i| (*i, (raw(i) / sum).to_bits())).collect();
            want.sort_unstable();
            let chosen = choose(&logits, k, gating, 0).unwrap();
            let got: Vec<(usize, u32)> = chosen.iter().map(|c| (c.expert, c.weight.to_bits())).collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn weights_follow_the_definition(logits in prop::collection::vec(-20.0f32..20.0, 4..64), k in 1usize..5, soft: bool) {
            let gating = if soft { Gating::Softmax } else { Gating::Sigmoid };
            let chosen = choose(&logits, k, gating, 0).unwrap();
            prop_assert_eq!(chosen.len(), k);
            prop_assert!(chosen.windows(2).all(|w| w[0].expert < w[1].expert));
            let value = |i: usize| { let x = f64::from(logits[i]); if soft { x.exp() } else { 1.0 / (1.0 + (-x).exp()) } };
            let sum: f64 = chosen.iter().map(|c| value(c.expert)).sum();
            for c in &chosen {
                prop_assert!((f64::from(c.weight) - value(c.expert) / sum).abs() < 1e-6);
            }
            let least = chosen.iter().map(|c| logits[c.expert]).fold(f32::INFINITY, f32::min);
            let better = logits.iter().filter(|&&x| x > least).count();
            prop_assert!(better < k);
        }
    }
}
