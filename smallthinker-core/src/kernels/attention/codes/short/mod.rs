//! Weighted sums of values of 4 bits, with weights of 8 bits.
//!
//! A weight counts for as much as the greatest scale of its position's values says: of a position that most attend to, they are often
//! small. Among 32 positions, the greatest product of the two is 255 steps, and of 32 dimensions a weight becomes as
//! many steps as their scale is a part of that greatest one. Values of 4 bits are so coarse that this loses little. Weights are not
//! rounded to the nearest step: many small ones beside a great one would all become 0. What is added before the fraction is cut off
//! ([`DITHER`]) differs from position to position, so that of many small weights some become 1, as many as they add up to.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod scalar;

use std::ops::Range;

use super::super::{BLOCK, LANES};
use super::{Ahead, Integers, SQUARES, Square4};

/// The greatest of the integers.
const MOST: f32 = 255.0;

/// The middles of 16 equal parts of 0 to 1, in an order in which any neighbours are far apart (that of bits reversed).
const DITHER: [f32; 16] = {
    let mut all = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        all[i] = ((i as u8).reverse_bits() >> 4) as f32 / 16.0 + 1.0 / 32.0;
        i += 1;
    }
    all
};

/// Squares in which no product is greater than this count for nothing, as the inverse of a smaller one might not be finite.
const LEAST: f32 = 1e-30;

/// The greatest product of weight and scale in each square of a block.
pub(in super::super) type Peaks = [f32; SQUARES];

/// Weights of rows that see the same positions become products of weight and greatest scale, relative to the greatest in each
/// square: 0 to 255. Whoever calls promises: `weights` and `peaks` have `rows` rows, weights are 0 in whole lines outside
/// `positions`, which lies inside a block, and `values` is whole columns.
pub(in super::super) struct Stretch<'a> {
    pub(in super::super) rows: usize,
    pub(in super::super) weights: &'a mut [[f32; BLOCK]],
    /// Receives the greatest product of each square that is seen; NaN if a scale is not finite.
    pub(in super::super) peaks: &'a mut [Peaks],
    pub(in super::super) positions: Range<usize>,
    /// Of all dimensions.
    pub(in super::super) values: &'a [Square4],
    /// Receives the inverse of the greatest scale of each position that is seen; 0 if it has none.
    pub(in super::super) inverses: &'a mut [f32; BLOCK],
}

/// Sums of 32 dimensions of values, weighted, times the row's gain, added to `out` square by square. Whoever calls promises: `1 <=
/// rows <= Functions::rows`; `weights`, `peaks` and `inverses` are as [`Stretch`] leaves them for the same positions, of which there
/// is one at least; `weights`, `peaks`, `integers` and `gains` have `rows` rows, and `out` has 32 elements at each multiple of
/// `width`, for every row.
pub(in super::super) struct Mix<'a> {
    pub(in super::super) rows: usize,
    pub(in super::super) weights: &'a [[f32; BLOCK]],
    pub(in super::super) peaks: &'a [Peaks],
    pub(in super::super) inverses: &'a [f32; BLOCK],
    /// Room for the weights as integers, in whatever order.
    pub(in super::super) integers: &'a mut [Integers],
    pub(in super::super) gains: &'a [f32],
    pub(in super::super) positions: Range<usize>,
    pub(in super::super) values: &'a [Square4; SQUARES],
    pub(in super::super) ahead: Ahead<'a>,
    pub(in super::super) width: usize,
    pub(in super::super) out: &'a mut [f32],
}

/// The squares that hold some of these positions.
fn squares(positions: &Range<usize>) -> Range<usize> {
    positions.start / LANES..positions.end.div_ceil(LANES)
}

/// Which of these positions square number `square` holds, from its first on.
fn inside(positions: &Range<usize>, square: usize) -> Range<usize> {
    let at = |position: usize| position.saturating_sub(square * LANES).min(LANES);
    at(positions.start)..at(positions.end)
}

/// What the products of a square, the greatest of which is `peak`, are multiplied with to be 255 at most, and the greatest as it
/// counts. A weight that is not a number is no peak: the row's sum of weights is not one either.
#[inline(always)]
fn stretching(peak: f32) -> (f32, f32) {
    match peak {
        peak if peak > LEAST => (MOST / peak, peak),
        _ => (0.0, 0.0),
    }
}

/// What a step counts for, of a peak of 1.
#[inline(always)]
fn worth(gain: f32) -> f32 {
    gain * (1.0 / MOST)
}
