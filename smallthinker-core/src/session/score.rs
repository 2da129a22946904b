//! How likely the model finds the tokens of a conversation.

use crate::forward::Want;
use crate::tiles::tiles;
use crate::{Error, Result};

use super::Session;

/// Bytes of logits made at a time, at most (of one position at least): few enough to stay modest beside a model with a
/// large vocabulary, many enough that the head's weights are unpacked seldom.
const LOGIT_BYTES: usize = 16 << 20;

impl Session {
    /// Natural logarithms of the probabilities of tokens `first..` of the conversation, each given those before it, from
    /// the full head. Evaluates what is not evaluated yet; that must not go beyond token `first - 1`.
    ///
    /// Logits are made a few positions at a time, within the budget.
    pub(crate) fn token_logprobs(&mut self, first: usize) -> Result<Vec<f64>> {
        let m = &self.model.inner;
        let (vocab, start) = (m.h.vocab, self.kv.len());
        if first == 0 || first > self.tokens.len() || start >= first {
            let message = format!("scoring from token {first} of {}, {start} evaluated", self.tokens.len());
            return Err(Error::Internal { message });
        }
        let scored = &self.tokens[first..];
        let rows = (LOGIT_BYTES / (4 * vocab)).max(1);
        let _lease = m.budget.lease("logits", (4 * vocab * rows.min(scored.len())) as u64)?;
        let mut logprobs = vec![0.0; scored.len()];
        let mut rest = &mut logprobs[..];
        // What follows the last token is not asked for.
        let pending = &self.tokens[start..self.tokens.len() - 1];
        for (i, chunk) in pending.chunks(m.chunk).enumerate() {
            let at = start + i * m.chunk;
            let team = m.pool.team(&self.cancel)?;
            let mut pass = m.pass(&team, &self.cancel);
            pass.run(chunk, Want::None, &mut self.kv, &mut self.scratch, &mut self.logits)?;
            let skip = (first - 1).saturating_sub(at).min(chunk.len());
            for from in (skip..chunk.len()).step_by(rows) {
                let to = chunk.len().min(from + rows);
                pass.logits_of(from..to, &mut self.scratch, &mut self.logits)?;
                let (now, later) = std::mem::take(&mut rest).split_at_mut(to - from);
                let (logits, targets) = (&self.logits, &self.tokens[at + from + 1..]);
                tiles(&team, now, 1, (1, 1), &|tile| {
                    let row = tile.rows().start;
                    tile.row(row)[0] = logprob(&logits[row * vocab..(row + 1) * vocab], targets[row]);
                    Ok(())
                })?;
                rest = later;
            }
        }
        self.logits = Vec::new();
        match logprobs.iter().all(|p| p.is_finite()) {
            true => Ok(logprobs),
            false => Err(Error::NotFinite { layer: m.h.n_layers, what: "a logit" }),
        }
    }
}

/// Log-softmax of `logits` at `token`, in double precision; sums ascend.
fn logprob(logits: &[f32], token: u32) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    f64::from(logits[token as usize]) - max - sum.ln()
}
