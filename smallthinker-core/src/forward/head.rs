//! Embedding lookup and LM head.

use std::ops::Range;

use crate::Result;
use crate::forward::clock::Stage;
use crate::forward::linear::{Batch, linear};
use crate::forward::{Pass, Scratch};
use crate::kernels::{Acts, Forms};
use crate::model::weights::Embedding;
use crate::tensor::dequantize;

impl Pass<'_> {
    /// `x` = the embedding rows of `tokens`.
    pub(super) fn embed(&mut self, tokens: &[u32], x: &mut Vec<f32>) -> Result<()> {
        let hidden = self.h.hidden;
        x.resize(tokens.len() * hidden, 0.0);
        let mut raw = Vec::new();
        for (&token, x) in tokens.iter().zip(x.chunks_exact_mut(hidden)) {
            let row = token as usize;
            match &self.weights.embedding {
                Embedding::Tied => self.weights.head.view().row_values(row, x)?,
                Embedding::File(info) => {
                    let row_bytes = info.n_bytes / self.h.vocab as u64;
                    raw.resize(row_bytes as usize, 0);
                    self.source.read_exact_at(info.shard, info.offset + row as u64 * row_bytes, &mut raw)?;
                    dequantize(info.dtype, &raw, x)?;
                    self.clock.bytes(Stage::Embedding, row_bytes);
                }
            }
        }
        Ok(())
    }

    /// `logits` = those of some of the positions that the last [`run`](Pass::run) evaluated, `[positions][vocab]`.
    pub(crate) fn logits_of(
        &mut self,
        positions: Range<usize>,
        s: &mut Scratch,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let hidden = self.h.hidden;
        logits.resize(positions.len() * self.h.vocab, 0.0);
        let x = &s.x[positions.start * hidden..positions.end * hidden];
        self.head(x, &mut s.norm, &mut s.acts, &mut s.batch, logits)
    }

    /// `logits` = those of the rows of `x` (final residuals).
    pub(super) fn head(
        &mut self,
        x: &[f32],
        norm: &mut Vec<f32>,
        acts: &mut Acts,
        batch: &mut Batch,
        logits: &mut [f32],
    ) -> Result<()> {
        let head = &self.weights.head;
        self.norm(x, &self.weights.output_norm, norm)?;
        self.quantize(norm, self.h.hidden, Forms::of(&[head.dtype]), acts)?;
        self.clock.lap(Stage::Norm);
        linear(self.team, self.kernels, &[head.view()], acts, batch, logits)?;
        self.clock.lap(Stage::Head);
        self.clock.bytes(Stage::Head, head.bytes());
        Ok(())
    }
}
