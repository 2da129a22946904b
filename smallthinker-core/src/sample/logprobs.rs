//! Log-probabilities of a step, from the model's own logits: before bias, penalty and temperature.

use super::{filters, survey};
use crate::error::{Error, Result};

/// Log-probability (natural logarithm) of a chosen token and of the most probable ones.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The chosen token.
    pub token: u32,
    /// Its log-probability; minus infinity if its logit is.
    pub logprob: f32,
    /// (token, log-probability), most probable first, lowest id first among equals.
    pub top: Vec<(u32, f32)>,
}

/// Log-softmax of `logits` (one per token of the vocabulary, all of them: a sparse head's would be
/// wrong) at `chosen` and at the `n` largest.
///
/// # Errors
/// `logits` is empty, holds NaN or plus infinity, or nothing finite; `chosen` is not in the vocabulary.
pub fn top_logprobs(logits: &[f32], chosen: u32, n: usize) -> Result<TokenLogprobs> {
    let (_, max) = survey(logits)?;
    let Some(&logit) = logits.get(chosen as usize) else {
        let allowed = format!("ids below the vocabulary size {}", logits.len());
        return Err(Error::argument("token", chosen, allowed));
    };
    if max == f32::NEG_INFINITY {
        return Err(Error::argument("logits", "minus infinity for every token", "at least one finite value"));
    }
    let max = f64::from(max);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    let log_total = max + sum.ln();
    let logprob = |l: f32| (f64::from(l) - log_total) as f32;
    let mut best = Vec::new();
    filters::top_k(logits, n.min(logits.len()), &mut best);
    let top = best.iter().map(|c| (c.id, logprob(c.logit))).collect();
    Ok(TokenLogprobs { token: chosen, logprob: logprob(logit), top })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_hand_computed_softmax() {
        // Probabilities 1/8, 1/2, 1/8, 1/4 as logits, shifted by a constant that must not matter.
        let p = [0.125f64, 0.5, 0.125, 0.25];
        let logits: Vec<f32> = p.iter().map(|p| p.ln() as f32 + 300.0).collect();
        let r = top_logprobs(&logits, 3, 4).unwrap();
        assert_eq!(r.token, 3);
        assert!((f64::from(r.logprob) - 0.25f64.ln()).abs() < 1e-4);
        assert_eq!(r.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0, 2]);
        for (id, lp) in r.top {
            assert!((f64::from(lp) - p[id as usize].ln()).abs() < 1e-4);
        }
    }

    #[test]
    fn edges() {
        let logits = [0.0, f32::NEG_INFINITY];
        let r = top_logprobs(&logits, 1, 10).unwrap();
        assert_eq!(r.logprob, f32::NEG_INFINITY);
        assert_eq!(r.top, [(0, 0.0)]);
        assert!(top_logprobs(&logits, 0, 0).unwrap().top.is_empty());
        assert!(top_logprobs(&logits, 2, 1).unwrap_err().to_string().contains("token"));
        assert!(top_logprobs(&[], 0, 1).is_err());
        assert!(top_logprobs(&[f32::NEG_INFINITY], 0, 1).is_err());
        assert!(top_logprobs(&[f32::NAN, 1.0], 1, 1).unwrap_err().to_string().contains("NaN for token 0"));
    }
}
