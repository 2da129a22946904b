//! The LM head for the rows that a predictor picks; all other logits are minus infinity.
//!
//! From a sketch: the rows of the largest estimates are computed, then every other row whose estimate, with the error that
//! it may have, reaches the largest logit found. So the more certain the model is, the fewer rows are read, and where the first rows
//! disappoint, more are. The report's own predictor names its rows itself. Which rows depends on the state alone, not on threads or
//! timing; their logits have the bits of the full head's.

use crate::Result;
use crate::forward::clock::Stage;
use crate::forward::linear::linear;
use crate::forward::{Pass, Scratch};
use crate::kernels::lanes::PickedRows;
use crate::kernels::{Acts, Forms};
use crate::model::predictor::{LEAST_ROWS, Predictor};
use crate::tiles::runs;

use super::neurons::some_rows;
use super::picker::Picker;

/// Where more than one row of so many is picked, all are computed.
const MOST: usize = 2;
/// Rows that a task computes at least.
const ROWS: usize = 8;

impl Pass<'_> {
    /// `logits` = those of one of the positions that this pass evaluated, for the rows that `predictor` picks; its estimates
    /// stay in `s`. Returns how many rows were computed.
    pub(crate) fn sparse_logits_of(
        &mut self,
        predictor: &Predictor,
        position: usize,
        s: &mut Scratch,
        logits: &mut [f32],
    ) -> Result<usize> {
        let (x, hidden) = (std::mem::take(&mut s.x), self.h.hidden);
        let done = self.sparse_head(predictor, &x[position * hidden..(position + 1) * hidden], s, logits);
        s.x = x;
        done
    }

    /// `logits` (of one position) = those of the final residual `x`, for the rows that `predictor` picks. Returns how many
    /// rows were computed.
    fn sparse_head(
        &mut self,
        predictor: &Predictor,
        x: &[f32],
        s: &mut Scratch,
        logits: &mut [f32],
    ) -> Result<usize> {
        let (head, vocab) = (&self.weights.head, self.h.vocab);
        let project = match predictor {
            Predictor::Trained(p) => &p.down,
            Predictor::Sketch(p) => &p.directions,
        };
        self.norm(x, &self.weights.output_norm, &mut s.norm)?;
        self.quantize(&s.norm, self.h.hidden, Forms::of(&[head.dtype, project.dtype]), &mut s.acts)?;
        self.clock.lap(Stage::Norm);
        let picker = &mut s.picker;
        s.coordinates.resize(project.rows, 0.0);
        linear(self.team, self.kernels, &[project.view()], &s.acts, &mut s.batch, &mut s.coordinates)?;
        let mut known = true;
        match predictor {
            Predictor::Trained(p) => {
                picker.estimate_trained(self.team, self.kernels, p, &s.coordinates, vocab)?;
                picker.pick_best(LEAST_ROWS);
                picker.pick_positive();
            }
            Predictor::Sketch(p) => {
                known = picker.estimate(self.team, self.kernels, p, (&s.norm, &s.coordinates), vocab)?;
                picker.pick_best(p.least_rows());
                picker.rows.extend(&p.always);
            }
        }
        logits.fill(f32::NEG_INFINITY);
        picker.rows.extend(self.head_rows.iter().filter(|&&row| (row as usize) < vocab));
        picker.rows.sort_unstable();
        picker.rows.dedup();
        let mut done = picker.rows.len();
        let mut all = !known || done > vocab / MOST;
        if !all {
            self.picked_rows(picker, &s.acts, logits)?;
            if let Predictor::Sketch(p) = predictor {
                let most = picker.values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                // Estimates lack what all rows have in common.
                let shift = self.kernels.dot_f32(&p.mean, &s.norm)?;
                picker.rows.clear();
                picker.pick_reaching(most - shift - p.margin(), p, vocab);
                picker.rows.retain(|&row| logits[row as usize] == f32::NEG_INFINITY);
                done += picker.rows.len();
                all = done > vocab / MOST;
                if !all {
                    self.picked_rows(picker, &s.acts, logits)?;
                }
            }
        }
        if all {
            linear(self.team, self.kernels, &[head.view()], &s.acts, &mut s.batch, logits)?;
            done = vocab;
        }
        self.clock.lap(Stage::Head);
        self.clock.bytes(Stage::Head, predictor.bytes() + head.bytes() * done as u64 / vocab as u64);
        Ok(done)
    }

    /// Computes the logits of the rows picked, which ascend.
    fn picked_rows(&self, picker: &mut Picker, acts: &Acts, logits: &mut [f32]) -> Result<()> {
        let (head, rows) = (self.weights.head.view(), &picker.rows);
        picker.values.resize(rows.len(), 0.0);
        let team = self.team.for_bytes(head.data.len() / head.rows.max(1) * rows.len());
        runs(&team, &mut picker.values, rows.len(), (ROWS, usize::MAX), &|tile| {
            let rows = &rows[tile.cols()];
            some_rows(self.kernels, &head, PickedRows::List(rows), acts.row(0), tile.row(0))
        })?;
        for (&row, &value) in rows.iter().zip(&picker.values) {
            logits[row as usize] = value;
        }
        Ok(())
    }
}
