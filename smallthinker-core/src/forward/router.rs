//! Expert choice: top-k of the router's logits, and the chosen experts' weights.

use crate::model::hparams::Gating;
use crate::{Error, Result};

/// An expert chosen for a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Choice {
    pub(crate) expert: usize,
    pub(crate) weight: f32,
}

/// The `top_k` largest of `logits` (the lower index first among equals), with weights that sum to one, in
/// ascending order of the expert number: the order in which outputs are added, for any batch.
///
/// Errors: [`Error::NotFinite`] naming the layer if a logit is NaN or infinite.
pub(crate) fn choose(logits: &[f32], top_k: usize, gating: Gating, layer: usize) -> Result<Vec<Choice>> {
    if logits.iter().any(|x| !x.is_finite()) {
        return Err(Error::NotFinite { layer, what: "a router logit" });
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let rank = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    if (1..order.len()).contains(&top_k) {
        order.select_nth_unstable_by(top_k - 1, rank);
    }
    order.truncate(top_k);
    order.sort_unstable_by(rank);
    let best = order.first().map_or(0.0, |&i| logits[i]);
    let raw = |i: usize| match gating {
        Gating::Softmax => (logits[i] - best).exp(),
        Gating::Sigmoid => 1.0 / (1.0 + (-logits[i]).exp()),
    };
    // In order of rank, so that the sum's rounding does not depend on expert numbers.
    let sum: f32 = order.iter().map(|&i| raw(i)).sum();
    // All sigmoids can underflow to zero; equal shares are the limit of the ratio.
    let share = |i| if sum > 0.0 { raw(i) / sum } else { 1.0 / top_k as f32 };
    order.sort_unstable();
    Ok(order.into_iter().map(|i| Choice { expert: i, weight: share(i) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
