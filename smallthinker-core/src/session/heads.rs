//! The sparse head beside the full one, at every position of a conversation.

use crate::forward::Want;
use crate::{Error, Result};

use super::Session;

/// What both heads say of one position.
pub(crate) struct BothHeads<'a> {
    /// Logits of the full head.
    pub(crate) full: &'a [f32],
    /// Logits of the sparse head: those of the full one or minus infinity.
    pub(crate) sparse: &'a [f32],
    /// What the predictor estimates, row by row.
    pub(crate) estimates: &'a [f32],
}

impl Session {
    /// Evaluates what is pending and shows each of its positions.
    pub(crate) fn each_head(&mut self, see: &mut dyn FnMut(BothHeads<'_>) -> Result<()>) -> Result<()> {
        let m = &self.model.inner;
        let vocab = m.h.vocab;
        let Some(predictor) = &m.predictor else {
            return Err(Error::argument(
                "model",
                "opened with the full head",
                "opened with lm_head \"sparse\"",
            ));
        };
        let mut sparse = vec![0.0; vocab];
        let mut estimates = Vec::with_capacity(vocab);
        let pending = self.tokens.get(self.kv.len()..).unwrap_or(&[]);
        for chunk in pending.chunks(m.chunk) {
            let team = m.pool.team(&self.cancel)?;
            let mut pass = m.pass(&team, &self.cancel);
            pass.run(chunk, Want::None, &mut self.kv, &mut self.scratch, &mut self.logits)?;
            for position in 0..chunk.len() {
                self.cancel.check()?;
                pass.logits_of(position..position + 1, &mut self.scratch, &mut self.logits)?;
                pass.sparse_logits_of(predictor, position, &mut self.scratch, &mut sparse)?;
                estimates.clear();
                estimates.extend(self.scratch.picker.estimates(vocab));
                see(BothHeads { full: &self.logits, sparse: &sparse, estimates: &estimates })?;
            }
        }
        self.logits.clear();
        Ok(())
    }
}
