//! Which rows of the LM head a sketch or a trained predictor finds worth computing.

use std::cmp::Ordering;

use crate::Result;
use crate::kernels::lanes::PickedRows;
use crate::kernels::signs::WORD;
use crate::kernels::{Acts, Kernels};
use crate::model::predictor::{Sketch, Trained};
use crate::pool::Team;
use crate::tiles::runs;

use super::neurons::some_rows;

/// Rows of a block of estimates.
const BLOCK: usize = 64;
/// Blocks that a task estimates at least.
const BLOCKS: usize = 4;
/// Error that an estimate may have, in standard deviations.
const MARGIN: f32 = 4.0;

/// Estimates of 64 rows.
#[derive(Clone, Copy)]
struct Block {
    /// Minus infinity behind the last row.
    estimates: [f32; BLOCK],
    /// The largest estimate.
    largest: f32,
    /// What no row's estimate exceeds with the error that it may have.
    bound: f32,
}

/// Estimates of all rows for one state, and the rows picked. Buffers are kept between tokens.
#[derive(Default)]
pub(crate) struct Picker {
    blocks: Vec<Block>,
    /// The error that estimates may have, per scale.
    error: f32,
    codes: Vec<[i8; WORD]>,
    acts: Acts,
    best: Vec<(f32, u32)>,
    /// Ascending, each once.
    pub(super) rows: Vec<u32>,
    pub(super) values: Vec<f32>,
}

impl Picker {
    /// Bytes that a vocabulary takes, at most.
    pub(crate) fn bytes(vocab: usize) -> usize {
        vocab.div_ceil(BLOCK) * size_of::<Block>() + 8 * vocab
    }

    /// Estimates from a sketch, for the state `x` with the coordinates `z`. Returns whether there are any: not of a state that
    /// is not finite, whose largest logit may be that of any row.
    pub(super) fn estimate(
        &mut self,
        team: &Team<'_>,
        kernels: &Kernels,
        sketch: &Sketch,
        (x, z): (&[f32], &[f32]),
        vocab: usize,
    ) -> Result<bool> {
        let step = z.iter().fold(0.0f32, |most, z| if z.abs() > most || z.is_nan() { z.abs() } else { most })
            / 127.0;
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        self.codes.clear();
        self.codes.resize(z.len().div_ceil(WORD), [0; WORD]);
        let codes = self.codes.as_flattened_mut();
        codes.iter_mut().zip(z).for_each(|(code, z)| *code = (z * inverse).round() as i8);
        let (x2, z2) = (kernels.dot_f32(x, x)?, kernels.dot_f32(z, z)?);
        self.error = MARGIN * sketch.deviation(x2, z2);
        let known = x2.is_finite() && step.is_finite() && self.error.is_finite();
        let (codes, error) = (&self.codes, self.error);
        let team = &team.for_bytes(sketch.bytes() as usize);
        fill(&mut self.blocks, team, vocab, &|rows, block| {
            let mut products = [0i32; BLOCK];
            let products = &mut products[..rows.len()];
            if !known {
                block.estimates[..rows.len()].fill(0.0);
                return Ok(());
            }
            kernels.sign_products(sketch.signs(rows.start), sketch.stride(), codes, products)?;
            let scales = sketch.scales(rows.start, rows.end);
            let mut bounds = [f32::NEG_INFINITY; BLOCK];
            let places = block.estimates.iter_mut().zip(&mut bounds);
            for (((estimate, bound), product), scale) in places.zip(products).zip(scales) {
                *estimate = scale * (step * *product as f32);
                *bound = *estimate + scale * error;
            }
            block.bound = largest(&bounds);
            Ok(())
        })?;
        Ok(known)
    }

    /// Estimates of a trained predictor, from its hidden vector.
    pub(super) fn estimate_trained(
        &mut self,
        team: &Team<'_>,
        kernels: &Kernels,
        predictor: &Trained,
        hidden: &[f32],
        vocab: usize,
    ) -> Result<()> {
        self.acts.set(kernels, hidden, hidden.len(), true)?;
        self.error = 0.0;
        let (up, x) = (predictor.up.view(), &self.acts);
        let team = &team.for_bytes(up.data.len());
        fill(&mut self.blocks, team, vocab, &|rows, block| {
            some_rows(
                kernels,
                &up,
                PickedRows::From(rows.start),
                x.row(0),
                &mut block.estimates[..rows.len()],
            )?;
            block.bound = largest(&block.estimates);
            Ok(())
        })
    }

    /// The present estimates of all rows.
    pub(crate) fn estimates(&self, vocab: usize) -> impl Iterator<Item = f32> {
        self.blocks.iter().flat_map(|block| block.estimates).take(vocab)
    }

    /// Picks the `most` rows of the largest estimates, the lowest among equals; forgets those picked before.
    pub(super) fn pick_best(&mut self, most: usize) {
        let by_rank = |a: &(f32, u32), b: &(f32, u32)| {
            b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
        };
        let best = &mut self.best;
        best.clear();
        let mut floor = f32::NEG_INFINITY;
        for (block, first) in self.blocks.iter().zip((0u32..).step_by(BLOCK)) {
            // Strictly above: an equal estimate further on ranks below those already held.
            if block.largest > floor {
                best.extend(
                    block.estimates.iter().copied().zip(first..).filter(|(estimate, _)| *estimate > floor),
                );
                if best.len() > most {
                    best.select_nth_unstable_by(most - 1, by_rank);
                    best.truncate(most);
                    floor = best[most - 1].0;
                }
            }
        }
        self.rows.clear();
        self.rows.extend(best.iter().map(|(_, row)| *row));
    }

    /// Picks, besides, the rows whose estimate, with the error that it may have, reaches `least`.
    pub(super) fn pick_reaching(&mut self, least: f32, sketch: &Sketch, vocab: usize) {
        for (i, block) in self.blocks.iter().enumerate().filter(|(_, block)| block.bound >= least) {
            let (from, to) = (i * BLOCK, vocab.min((i + 1) * BLOCK));
            let rows = block.estimates.iter().zip(sketch.scales(from, to)).zip(from as u32..);
            let reach = rows.filter(|((estimate, scale), _)| *estimate + scale * self.error >= least);
            self.rows.extend(reach.map(|(_, row)| row));
        }
    }

    /// Picks, besides, the rows whose estimate is above zero.
    pub(super) fn pick_positive(&mut self) {
        for (block, first) in self.blocks.iter().zip((0u32..).step_by(BLOCK)) {
            let rows = block.estimates.iter().zip(first..).filter(|(estimate, _)| **estimate > 0.0);
            self.rows.extend(rows.map(|(_, row)| row));
        }
    }
}

/// Runs `task` for the block of each range of rows.
fn fill(
    blocks: &mut Vec<Block>,
    team: &Team<'_>,
    vocab: usize,
    task: &(dyn Fn(std::ops::Range<usize>, &mut Block) -> Result<()> + Sync),
) -> Result<()> {
    const NONE: f32 = f32::NEG_INFINITY;
    let count = vocab.div_ceil(BLOCK);
    blocks.resize(count, Block { estimates: [NONE; BLOCK], largest: NONE, bound: NONE });
    runs(team, blocks, count, (BLOCKS, usize::MAX), &|tile| {
        let first = tile.cols().start;
        for (i, block) in tile.row(0).iter_mut().enumerate() {
            let from = (first + i) * BLOCK;
            (block.largest, block.bound) = (NONE, NONE);
            task(from..vocab.min(from + BLOCK), block)?;
            block.largest = largest(&block.estimates);
        }
        Ok(())
    })
}

/// The largest value, in lanes that do not wait for one another. Passes over NaN.
fn largest(values: &[f32; BLOCK]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in values.as_chunks::<16>().0 {
        for (most, &value) in lanes.iter_mut().zip(chunk) {
            *most = if value > *most { value } else { *most };
        }
    }
    lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}
