//! Attention over keys and values in 8 or 4 bits: products of integers.
//!
//! Queries become 8-bit codes with a scale for each 32 dimensions, as keys are. The weights of a block, relative to the
//! greatest among them, times the scales of the values become 15-bit integers in units of the greatest scale, so that
//! a block has one integer sum for each dimension. Every set computes the same integers, in any order, and the same few
//! operations in single precision around them. Codes of 4 bits become codes of 8 bits first, a few squares at a time.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod scalar;

use std::ops::Range;

use super::{BLOCK, Coded, HALF_BYTES, LANES, SUMS, Square, Square4};

/// Squares of 32 dimensions of the values of a block, and of one dimension of 32 of the keys.
pub(super) const SQUARES: usize = BLOCK / LANES;

/// The integer that stands for the weight 1 of a value with the greatest scale. 256 products with codes fit 32 bits.
const ONE: f32 = 32767.0;

/// Scales from here on are not finite.
const NOT_FINITE: u16 = 0x7c00;

/// Query rows as codes, tile after tile.
#[derive(Default)]
pub(super) struct QueryCodes {
    /// `[dimensions / 4][rows]`, whole parts of 32 dimensions.
    codes: Vec<[i8; 4]>,
    /// `[parts][rows]`.
    scales: Vec<f32>,
    /// `[parts][rows]`: -128 times the sum of the codes.
    offsets: Vec<i32>,
    /// One row, its scales, and the sums of its codes.
    row: Vec<[i8; LANES]>,
    row_scales: Vec<f32>,
    row_sums: Vec<i32>,
}

/// Some rows of these, not more than `Functions::rows`.
#[derive(Clone, Copy)]
pub(super) struct TileCodes<'a> {
    codes: &'a [[i8; 4]],
    scales: &'a [f32],
    offsets: &'a [i32],
}

impl QueryCodes {
    /// Forgets all tiles.
    pub(super) fn clear(&mut self) {
        self.codes.clear();
        self.scales.clear();
        self.offsets.clear();
    }

    /// Adds a tile of rows of `head_dim` elements.
    pub(super) fn push_tile(&mut self, functions: &Functions, rows: &[f32], head_dim: usize) {
        let (n, parts) = (rows.len() / head_dim, head_dim.div_ceil(LANES));
        let [codes, scales] = [self.codes.len(), self.scales.len()];
        self.codes.resize(codes + parts * LANES / 4 * n, [0; 4]);
        self.scales.resize(scales + parts * n, 0.0);
        self.offsets.resize(scales + parts * n, 0);
        self.row.resize(parts, [0; LANES]);
        self.row_scales.resize(parts, 0.0);
        self.row_sums.resize(parts, 0);
        for (r, row) in rows.chunks_exact(head_dim).enumerate() {
            // SAFETY: the set exists, so the CPU has its instructions.
            unsafe { (functions.quantize)(row, &mut self.row, &mut self.row_scales, &mut self.row_sums) };
            for (part, (scale, sum)) in self.row_scales.iter().zip(&self.row_sums).enumerate() {
                self.scales[scales + part * n + r] = *scale;
                self.offsets[scales + part * n + r] = -128 * sum;
            }
            let places = self.codes[codes + r..].iter_mut().step_by(n);
            places.zip(self.row.as_flattened().as_chunks().0).for_each(|(place, four)| *place = *four);
        }
    }

    /// The tile of these rows.
    pub(super) fn tile(&self, rows: &Range<usize>, head_dim: usize) -> TileCodes<'_> {
        let parts = head_dim.div_ceil(LANES);
        let scales = rows.start * parts..rows.end * parts;
        TileCodes {
            codes: &self.codes[scales.start * LANES / 4..scales.end * LANES / 4],
            scales: &self.scales[scales.clone()],
            offsets: &self.offsets[scales],
        }
    }
}

/// What is requested from memory while some squares are computed with, since it will be needed a while later: squares that follow on
/// them, or on those that they were unpacked from.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Address of the first. It may lie outside of any allocation.
    first: usize,
    /// Bytes of one.
    square: usize,
    /// As [`Coded::SHIFT`].
    shift: u32,
}

impl Ahead {
    /// Of squares that begin `bytes` after the first of these.
    pub(super) fn after<S: Coded>(squares: &[S], bytes: usize) -> Ahead {
        let first = squares.as_ptr().addr().wrapping_add(bytes);
        Ahead { first, square: size_of::<S>(), shift: S::SHIFT }
    }

    /// The bytes of the square with this number.
    fn square(&self, number: usize) -> Range<usize> {
        let first = self.first.wrapping_add(number * self.square);
        first..first.wrapping_add(self.square)
    }
}

/// Products of query rows with keys. Whoever calls promises: `1 <= rows <= Functions::rows`, `q` is a tile of as many,
/// `keys` is whole groups of 32 positions (`parts` squares each), `out` has `rows` rows and room for the groups from
/// `first` on.
pub(super) struct Score<'a> {
    pub(super) rows: usize,
    pub(super) q: TileCodes<'a>,
    pub(super) parts: usize,
    pub(super) keys: &'a [Square],
    /// Where in the block the first key is.
    pub(super) first: usize,
    pub(super) ahead: Ahead,
    pub(super) out: &'a mut [[f32; BLOCK]],
}

/// Weights of a row as integers, pairs of 16 bits for each two positions. The order of the pairs is up to the set.
pub(super) type Integers = [[i32; LANES / 2]; SQUARES];

/// Sums of 32 dimensions of values, weighted, times the row's gain, added to `out`. Whoever calls promises: `1 <= rows <=
/// Functions::rows`, `weights` (0 to 1), `integers` and `gains` have `rows` rows, weights are 0 in whole lines outside `positions`,
/// which lies inside a block and is not empty, and `out` has 32 elements at each multiple of `width`, for every row.
pub(super) struct Mix<'a> {
    pub(super) rows: usize,
    pub(super) weights: &'a [[f32; BLOCK]],
    /// Room for the weights as integers.
    pub(super) integers: &'a mut [Integers],
    pub(super) gains: &'a [f32],
    pub(super) positions: Range<usize>,
    pub(super) values: &'a [Square; SQUARES],
    pub(super) ahead: Ahead,
    pub(super) width: usize,
    pub(super) out: &'a mut [f32],
}

/// What a row shrinks by, and what the weights of a block count for, now that its maximum is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softened {
    pub(super) max: f32,
    pub(super) shrink: f32,
    pub(super) gain: f32,
}

/// Makes codes of -127..=127 of a row, with a scale for each 32 of them and their sum. If one of 32 elements is not finite,
/// their scale is NaN. The last codes are padded with zeros.
type Quantize = unsafe fn(&[f32], &mut [[i8; LANES]], &mut [f32], &mut [i32]);

/// The functions of a kernel set. Unsafe as those of [`super::Functions`] are.
pub(super) struct Functions {
    pub(super) quantize: Quantize,
    pub(super) score: unsafe fn(Score<'_>),
    /// As [`super::Functions::soften`], but weights are relative to the maximum of these scores.
    pub(super) soften: unsafe fn(&mut [f32], f32, &mut [f32; SUMS]) -> Softened,
    pub(super) mix: unsafe fn(Mix<'_>),
    /// Makes as many squares of others with codes of 4 bits.
    pub(super) unpack: unsafe fn(&[Square4], &mut [Square]),
}

/// What a set's `unpack` does to each square, to be compiled for its instructions.
#[inline(always)]
fn unpack(from: &Square4, to: &mut Square) {
    to.scales = from.scales;
    let parts = to.codes.as_chunks_mut::<{ 2 * HALF_BYTES }>().0;
    for (bytes, codes) in from.codes.as_chunks::<HALF_BYTES>().0.iter().zip(parts) {
        let (lower, upper) = codes.split_at_mut(HALF_BYTES);
        for ((byte, lower), upper) in bytes.iter().zip(lower).zip(upper) {
            (*lower, *upper) = ((byte & 15) as i8 * 2 - 15, (byte >> 4) as i8 * 2 - 15);
        }
    }
}

/// What every set's `quantize` does, to be compiled for its instructions.
#[inline(always)]
fn quantize(x: &[f32], codes: &mut [[i8; LANES]], scales: &mut [f32], sums: &mut [i32]) {
    let (whole, rest) = x.as_chunks();
    let mut places = codes.iter_mut().zip(scales).zip(sums);
    for (x, ((codes, scale), sum)) in whole.iter().zip(&mut places) {
        (*scale, *sum) = quantize_part(x, codes);
    }
    if let Some(((codes, scale), sum)) = places.next() {
        let mut padded = [0.0; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        (*scale, *sum) = quantize_part(&padded, codes);
    }
}

#[inline(always)]
fn quantize_part(x: &[f32; LANES], codes: &mut [i8; LANES]) -> (f32, i32) {
    /// Adding this rounds a small float to an integer, in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let largest = x.iter().fold(0, |m, v| (v.to_bits() & 0x7fff_ffff).max(m));
    let largest = f32::from_bits(largest);
    // Below this the inverse might not be finite.
    let usable = (128.0 * f32::MIN_POSITIVE..f32::INFINITY).contains(&largest);
    let inverse = if usable { 127.0 / largest } else { 0.0 };
    let mut sum = 0;
    for (code, v) in codes.iter_mut().zip(x) {
        let rounded = (if usable { v * inverse } else { 0.0 } + ROUND).to_bits() as i8;
        *code = rounded;
        sum += i32::from(rounded);
    }
    let scale = match largest {
        _ if usable => largest / 127.0,
        _ if largest < 1.0 => 0.0,
        _ => f32::NAN,
    };
    (scale, sum)
}

/// Units of the integers of a block, from the greatest scale: what one is worth, and its inverse. `None` if all values
/// are zero.
#[inline(always)]
fn units(greatest: u16, widened: f32) -> Option<(f32, f32)> {
    match greatest {
        0 => None,
        NOT_FINITE.. => Some((f32::NAN, 0.0)),
        _ => Some((widened / ONE, ONE / widened)),
    }
}
