//! A sketch of the head's rows: signs along some directions, and a scale. One that needs no training is made here; a file may bring
//! one that was trained ([`stored`](super::stored)).
//!
//! A logit is `w · x = mean · x + (w - mean) · x`. The first part is the same for all rows, so it does not matter which is
//! largest. Of the second, the sketch keeps, for each row, the signs of its coordinates along some directions, and one
//! scale: `(w - mean) · x ≈ scale · Σ ± z`, where `z` are the coordinates of `x`. The directions span where the rows
//! differ most ([`directions`](super::directions)), and are turned at random within that space, so that all
//! coordinates are about equally large and the errors of the signs are spread over all of them (as in RaBitQ, Gao and
//! Long, arXiv 2405.12497, whose estimator this is). So the error of an estimate is nearly normal, about 0.7 times
//! `scale · |z|`.

use super::stored::Stored;
use super::{LEAST_ROWS, LEAST_ROWS_TRAINED, directions};
use crate::arena::{Arena, Slab};
use crate::cancel::CancelFlag;
use crate::forward::{Batch, linear};
use crate::kernels::signs::{MAX_WORDS, WORD};
use crate::kernels::{Acts, Kernels};
use crate::model::weights::Resident;
use crate::pool::Team;
use crate::tensor::DType;
use crate::tensor::matrix::Matrix;
use crate::tiles::tiles;
use crate::{Error, Result};

/// The standard deviation of an estimate's error within the directions, in units of `scale · |z|`, is about this at most.
const WITHIN: f32 = 0.65;
/// Share of the head's bytes, in thousandths, that a sketch with its least exact rows may read.
const SHARE: usize = 135;
/// Widest head: finding directions takes the square of it in single precision, 256 MiB.
pub(super) const MOST_HIDDEN: usize = 8192;
/// The number of directions is a multiple of this: whole bytes of signs, at places that are no trouble to read.
pub(super) const STEP: usize = 16;
/// Rows that a task sketches.
const ROWS: usize = 1024;
/// Values of a scale.
const SCALES: usize = 256;

/// The sketch in memory.
pub(crate) struct Sketch {
    /// `[directions, hidden]`: gives the coordinates of a state.
    pub(crate) directions: Resident,
    /// `[vocab][count / 8]`, and as many bytes more as the last word of the last row may reach over.
    signs: Slab,
    /// One per row, a place in `scales`.
    codes: Slab,
    /// Ascending.
    scales: Vec<f32>,
    /// Directions.
    count: usize,
    /// What all rows have in common, which estimates lack.
    pub(crate) mean: Vec<f32>,
    /// Rows that no estimate can be made of, as some of their weights are not numbers or too large.
    pub(crate) always: Vec<u32>,
    pub(crate) rule: Rule,
}

/// Which rows are worth computing besides those of the largest estimates: those whose estimate, with the error that it may have,
/// reaches the largest logit found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rule {
    /// In proportion to the row's scale ([`Sketch::deviation`]).
    Error {
        /// Mean square of a row's coordinate along a direction that was left out, in units of its `scale`².
        outside: f32,
    },
    /// The same for all rows.
    Margin(f32),
}

/// Number of directions: the most that stay within [`SHARE`] of `head` bytes, one step at least.
fn directions_for(vocab: usize, hidden: usize, head: usize) -> usize {
    let row = head / vocab.max(1);
    let fits = |count: &usize| {
        let signs = (count / 8 + 1).saturating_mul(vocab);
        let project = Resident::footprint(direction_type(hidden), *count, hidden);
        (signs + project + LEAST_ROWS * row) / SHARE <= head / 1000
    };
    (1..=(MAX_WORDS * WORD).min(hidden) / STEP).rev().map(|steps| steps * STEP).find(fits).unwrap_or(STEP)
}

/// Bytes of the signs of a vocabulary.
fn sign_bytes(vocab: usize, count: usize) -> usize {
    vocab * (count / 8) + WORD / 8
}

/// 4 bits where rows are whole blocks: their error is small beside that of the signs.
fn direction_type(hidden: usize) -> DType {
    if hidden.is_multiple_of(32) { DType::Q4_0 } else { DType::F32 }
}

/// Bytes of the sketch of a head that takes `head` bytes in memory.
pub(super) fn bytes(vocab: usize, hidden: usize, head: usize) -> usize {
    footprint(vocab, hidden, directions_for(vocab, hidden, head))
}

/// Bytes of a sketch with `count` directions.
pub(super) fn footprint(vocab: usize, hidden: usize, count: usize) -> usize {
    Arena::footprint(sign_bytes(vocab, count))
        + Arena::footprint(vocab)
        + Resident::footprint(direction_type(hidden), count, hidden)
        + 4 * (hidden + SCALES)
}

impl Sketch {
    /// Makes the sketch of a head. The result depends on the head and the kernel set alone. While it is made, it takes
    /// the space of a few thousand rows in single precision besides, before there are experts in memory.
    pub(super) fn new(
        head: &Matrix<'_>,
        kernels: &Kernels,
        team: &Team<'_>,
        cancel: &CancelFlag,
    ) -> Result<Sketch> {
        let (vocab, hidden) = (head.rows, head.cols);
        let count = directions_for(vocab, hidden, head.data.len());
        let mut arena = Arena::new(footprint(vocab, hidden, count), "sketch of the LM head")?;
        let (mut signs, mut codes) = memory(&mut arena, vocab, count)?;
        let found = directions::find(head, count, kernels, team, cancel)?;

        // Sums of the coordinates' squares and of their magnitudes.
        let mut sums = vec![[0.0f32; 2]; vocab];
        let mut acts = Acts::new();
        let mut batch = Batch::default();
        let mut coordinates = vec![0.0f32; WORD * vocab];
        for (word, directions) in found.rows.chunks(WORD * hidden).enumerate() {
            let coordinates = &mut coordinates[..directions.len() / hidden * vocab];
            cancel.check()?;
            acts.set(kernels, directions, hidden, head.dtype.is_quantized())?;
            linear(team, kernels, &[*head], &acts, &mut batch, coordinates)?;
            let shifts = directions.chunks_exact(hidden).map(|d| kernels.dot_f32(d, &found.mean));
            let shifts = shifts.collect::<Result<Vec<f32>>>()?;
            let columns = || coordinates.chunks_exact(vocab).zip(&shifts).enumerate();
            tiles(team, &mut signs[..vocab * (count / 8)], count / 8, (ROWS, count / 8), &|tile| {
                let rows = tile.rows();
                for (bit, (column, shift)) in columns() {
                    for (row, value) in rows.clone().zip(&column[rows.clone()]) {
                        tile.row(row)[word * (WORD / 8) + bit / 8] |= u8::from(*value >= *shift) << (bit % 8);
                    }
                }
                Ok(())
            })?;
            tiles(team, &mut sums, 1, (ROWS, 1), &|tile| {
                let rows = tile.rows();
                for (_, (column, shift)) in columns() {
                    for (row, value) in rows.clone().zip(&column[rows.clone()]) {
                        let [squares, magnitudes] = &mut tile.row(row)[0];
                        *squares += (value - shift) * (value - shift);
                        *magnitudes += (value - shift).abs();
                    }
                }
                Ok(())
            })?;
        }
        let scale =
            |[squares, magnitudes]: &[f32; 2]| if *magnitudes > 0.0 { squares / magnitudes } else { 0.0 };
        let known = |[squares, magnitudes]: &[f32; 2]| squares.is_finite() && magnitudes.is_finite();
        let always = (0u32..).zip(&sums).filter(|(_, sums)| !known(sums)).map(|(row, _)| row).collect();
        let scales = scales(sums.iter().map(scale), &mut codes);
        sums.retain(known);
        let outside = outside(&sums, found.variance, hidden - count.min(hidden));
        let directions =
            Resident::from_values(direction_type(hidden), &found.rows, count, hidden, &mut arena)?;
        let (mean, rule) = (found.mean, Rule::Error { outside });
        Ok(Sketch { directions, signs, codes, scales, count, mean, always, rule })
    }

    /// The sketch that a file brings, for states of the size `hidden`.
    pub(super) fn from_stored(stored: &Stored<'_>, hidden: usize) -> Result<Sketch> {
        let (vocab, count) = (stored.scales.len(), stored.count);
        let mut arena = Arena::new(footprint(vocab, hidden, count), "sketch of the LM head")?;
        let (mut signs, mut codes) = memory(&mut arena, vocab, count)?;
        let place = signs.get_mut(..stored.signs.len()).unwrap_or(&mut []);
        place.copy_from_slice(stored.signs);
        let scales = scales(stored.scales.iter().copied(), &mut codes);
        let directions =
            Resident::from_values(direction_type(hidden), stored.directions, count, hidden, &mut arena)?;
        let (mean, rule) = (stored.mean.to_vec(), Rule::Margin(stored.margin));
        Ok(Sketch { directions, signs, codes, scales, count, mean, always: Vec::new(), rule })
    }

    /// Bytes that it reads for a token.
    pub(crate) fn bytes(&self) -> u64 {
        (self.signs.len() + self.codes.len() + size_of_val(self.mean.as_slice())) as u64
            + self.directions.bytes()
    }

    /// The standard deviation of an estimate's error per unit of the row's scale, for a state of the squared length `x2` whose
    /// coordinates have the squared length `z2`: of the signs, and of what the directions leave out. Zero where a
    /// margin stands for it.
    pub(crate) fn deviation(&self, x2: f32, z2: f32) -> f32 {
        match self.rule {
            Rule::Error { outside } => (WITHIN * WITHIN * z2 + outside * (x2 - z2).max(0.0)).sqrt(),
            Rule::Margin(_) => 0.0,
        }
    }

    /// The error that any row's estimate may have, whatever its scale.
    pub(crate) fn margin(&self) -> f32 {
        match self.rule {
            Rule::Error { .. } => 0.0,
            Rule::Margin(margin) => margin,
        }
    }

    /// Rows that are computed first, as far as there are so many.
    pub(crate) fn least_rows(&self) -> usize {
        match self.rule {
            Rule::Error { .. } => LEAST_ROWS,
            Rule::Margin(_) => LEAST_ROWS_TRAINED,
        }
    }

    /// Bytes of a row's signs.
    pub(crate) fn stride(&self) -> usize {
        self.count / 8
    }

    /// The signs from row `from` on.
    pub(crate) fn signs(&self, from: usize) -> &[u8] {
        self.signs.get(from * self.stride()..).unwrap_or(&[])
    }

    /// The scales of rows `from..to`.
    pub(crate) fn scales(&self, from: usize, to: usize) -> impl Iterator<Item = f32> {
        self.codes.get(from..to).unwrap_or(&[]).iter().map(|&code| self.scales[usize::from(code)])
    }
}

/// What [`Rule::Error`] calls `outside`, of the rows' sums, the mean square of their distance from the mean, and the number of directions
/// that were left out.
fn outside(sums: &[[f32; 2]], variance: f64, left_out: usize) -> f32 {
    let mean = |value: &dyn Fn(f64, f64) -> f64| {
        let values = sums.iter().map(|[squares, magnitudes]| value((*squares).into(), (*magnitudes).into()));
        values.sum::<f64>() / sums.len().max(1) as f64
    };
    let within = mean(&|squares, _| squares);
    let scales =
        mean(&|squares, magnitudes| if magnitudes > 0.0 { (squares / magnitudes).powi(2) } else { 0.0 });
    let outside = (variance - within).max(0.0) / left_out.max(1) as f64 / scales;
    // Of rows that are all the same, or not finite.
    if outside.is_finite() { outside as f32 } else { 0.0 }
}

/// Memory for the signs of a vocabulary, and for its scales' places.
fn memory(arena: &mut Arena, vocab: usize, count: usize) -> Result<(Slab, Slab)> {
    let full = || Error::Internal { message: "the sketch's arena is smaller than the sketch".into() };
    let mut take = |len| arena.take(len).ok_or_else(full);
    Ok((take(sign_bytes(vocab, count))?, take(vocab)?))
}

/// The scale of each row, rounded to one of 255 values in equal proportions, or to zero.
fn scales(rows: impl Iterator<Item = f32> + Clone, codes: &mut [u8]) -> Vec<f32> {
    // `max` and `min` pass over NaN, as of a row with weights that are not finite.
    let usable = |s: &f32| s.is_normal() && *s > 0.0;
    let all = || rows.clone().filter(usable);
    let (least, most) = (all().fold(f32::INFINITY, f32::min), all().fold(0.0f32, f32::max));
    if most == 0.0 {
        codes.fill(0);
        return vec![0.0; SCALES];
    }
    let steps = (SCALES - 2) as f32;
    let step = (most.ln() - least.ln()) / steps;
    for (code, scale) in codes.iter_mut().zip(rows.clone()) {
        let place = if step > 0.0 { ((scale.ln() - least.ln()) / step).round() } else { 0.0 };
        *code = if usable(&scale) { 1 + place as u8 } else { 0 };
    }
    let value = |i: usize| if i == 0 { 0.0 } else { (least.ln() + (i - 1) as f32 * step).exp() };
    (0..SCALES).map(value).collect()
}
