//! Top-k, top-p and min-p without sorting the whole vocabulary.

use std::cmp::Ordering;

use super::params::SamplingParams;

/// A token that may still be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
    /// Unnormalised probability: exp((logit − largest logit) / temperature), so 1 for the largest.
    pub(super) weight: f64,
}

/// Larger logit first, lower id first among equals. Logits are never NaN here.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Fills `out` with the tokens that temperature, top-k, top-p and min-p leave, with their weights.
/// `max` is the largest of `logits`, finite; temperature is above 0.
pub(super) fn collect(params: &SamplingParams, logits: &[f32], max: f32, out: &mut Vec<Candidate>) {
    let k = params.top_k;
    if k > 0 && k < logits.len() {
        top_k(logits, k, out);
    } else {
        let all = logits.iter().enumerate().filter(|(_, l)| **l > f32::NEG_INFINITY);
        out.clear();
        out.extend(all.map(|(id, &logit)| Candidate { id: id as u32, logit, weight: 0.0 }));
    }
    let temperature = f64::from(params.temperature);
    for c in out.iter_mut() {
        // The difference first: it is at most 0, so no temperature can overflow it upwards.
        c.weight = ((f64::from(c.logit) - f64::from(max)) / temperature).exp();
    }
    if params.top_p < 1.0 {
        top_p(out, f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        let least = f64::from(params.min_p);
        out.retain(|c| c.weight >= least);
    }
}

/// The `k` largest logits in rank order, minus infinity left out.
///
/// One pass with a short buffer: a logit not above the smallest of the best k so far is passed over,
/// which is nearly all of them, so the cost is that of reading the logits.
pub(super) fn top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if k == 0 {
        return;
    }
    let buffer = k.saturating_mul(2).max(256);
    let mut floor = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        // Strictly above: an equal logit with a higher id ranks below the k already held.
        if logit > floor {
            out.push(Candidate { id: id as u32, logit, weight: 0.0 });
            if out.len() == buffer {
                out.select_nth_unstable_by(k - 1, by_rank);
                out.truncate(k);
                floor = out[k - 1].logit;
            }
        }
    }
    out.sort_unstable_by(by_rank);
    out.truncate(k);
}

/// Shrinks `candidates` to the shortest prefix in rank order whose weights reach `p` of the total.
fn top_p(candidates: &mut Vec<Candidate>, p: f64) {
    let target = p * candidates.iter().map(|c| c.weight).sum::<f64>();
    let mut sorted = 0;
    let mut sum = 0.0;
    let mut chunk = 256;
    // The nucleus is usually short: order only as much of the front as it takes.
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let take = chunk.min(rest.len());
        if take < rest.len() {
            rest.select_nth_unstable_by(take - 1, by_rank);
        }
        rest[..take].sort_unstable_by(by_rank);
        for (i, c) in rest[..take].iter().enumerate() {
            sum += c.weight;
            if sum >= target {
                candidates.truncate(sorted + i + 1);
                return;
            }
        }
        sorted += take;
        chunk *= 8;
    }
}
