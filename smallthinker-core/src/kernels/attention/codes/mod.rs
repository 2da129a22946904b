//! Attention over keys and values in 8 or 4 bits: products of integers.
//!
//! Queries become 8-bit codes with a scale for each 32 dimensions, as keys are. The weights of a block, relative to the
//! greatest among them, times the scales of the values become 15-bit integers in units of the greatest scale, so that
//! a block has one integer sum for each dimension; with values of 4 bits they become 8-bit integers, see `short`. Every set computes
//! the same integers, in any order, and the same few operations in single precision around them.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod scalar;
pub(super) mod short;

use std::ops::Range;

use super::{BLOCK, Coded, LANES, Run, SUMS, Square, Square4};

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
    /// `[parts][rows]`: sums of the codes times the keys' [`Coded::OFFSET`], with the other sign.
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

    /// Adds a tile of rows of `head_dim` elements that will meet keys of this [`Coded::OFFSET`].
    pub(super) fn push_tile(&mut self, functions: &Functions, rows: &[f32], head_dim: usize, offset: i32) {
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
                self.offsets[scales + part * n + r] = -offset * sum;
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

/// The squares of a block and of the one after it, in the order in which they are computed with: where they lie in memory, to be
/// requested ahead of time.
pub(super) struct Course {
    /// Of keys, values, keys and values.
    runs: [Run; 4],
    /// Bytes of a square.
    square: usize,
}

impl Course {
    /// Of the keys and values of a block, and of `next`, those after them.
    pub(super) fn new<S: Coded>(keys: &[S], values: &[S], next: [Run; 2]) -> Course {
        let run = |squares: &[S]| (squares.as_ptr().addr(), squares.len());
        let [next_keys, next_values] = next;
        let runs = [run(keys), run(values), next_keys, next_values];
        Course { runs, square: size_of::<S>() }
    }

    /// Squares of its keys.
    pub(super) fn keys(&self) -> usize {
        self.runs[0].1
    }

    /// Squares that `bytes` bytes are.
    pub(super) fn distance(&self, bytes: usize) -> usize {
        bytes / self.square
    }

    /// What comes `distance` squares after number `number`.
    pub(super) fn ahead(&self, number: usize, distance: usize) -> Ahead<'_> {
        Ahead { course: self, first: number + distance }
    }
}

/// What is requested from memory while some squares are computed with.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a> {
    course: &'a Course,
    /// The number of the first.
    first: usize,
}

impl Ahead<'_> {
    /// The bytes of the square with this number, from the first on.
    #[inline]
    fn square(&self, number: usize) -> Range<usize> {
        let mut number = self.first + number;
        for (first, count) in self.course.runs {
            if number < count {
                let at = first.wrapping_add(number * self.course.square);
                return at..at.wrapping_add(self.course.square);
            }
            number -= count;
        }
        // Nothing comes any more: what has been here already.
        let at = self.course.runs[0].0;
        at..at.wrapping_add(self.course.square)
    }
}

/// Products of query rows with keys. Whoever calls promises: `1 <= rows <= Functions::rows`, `q` is a tile of as many,
/// `keys` is whole groups of 32 positions (`parts` squares each), `out` has `rows` rows and room for the groups from
/// `first` on.
pub(super) struct Score<'a, S> {
    pub(super) rows: usize,
    pub(super) q: TileCodes<'a>,
    pub(super) parts: usize,
    pub(super) keys: &'a [S],
    /// Where in the block the first key is.
    pub(super) first: usize,
    pub(super) ahead: Ahead<'a>,
    pub(super) out: &'a mut [[f32; BLOCK]],
}

/// Weights of a row as integers, pairs of 16 bits for each two positions, or of two rows, four of 8 bits for each four positions. Their
/// order is up to the set.
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
    pub(super) ahead: Ahead<'a>,
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
    pub(super) score: unsafe fn(Score<'_, Square>),
    pub(super) score4: unsafe fn(Score<'_, Square4>),
    /// As [`super::Functions::soften`], but weights are relative to the maximum of these scores.
    pub(super) soften: unsafe fn(&mut [f32], f32, &mut [f32; SUMS]) -> Softened,
    pub(super) mix: unsafe fn(Mix<'_>),
    pub(super) stretch: unsafe fn(short::Stretch<'_>),
    pub(super) mix4: unsafe fn(short::Mix<'_>),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys, values, and those of the next block, each in a place of its own; then the first square again.
    #[test]
    fn squares_are_requested_in_the_order_of_their_use() {
        let squares = vec![Square::EMPTY; 64];
        let [keys, values, next_keys, next_values] =
            [&squares[40..44], &squares[0..4], &squares[20..24], &squares[60..64]];
        let run = |squares: &[Square]| (squares.as_ptr().addr(), squares.len());
        let course = Course::new(keys, values, [run(next_keys), run(next_values)]);
        assert_eq!(course.keys(), 4);
        assert_eq!(course.distance(3 * size_of::<Square>()), 3);
        let places = (0..18).map(|number| {
            let bytes = course.ahead(1, 1).square(number);
            assert_eq!(bytes.len(), size_of::<Square>());
            (bytes.start - squares.as_ptr().addr()) / size_of::<Square>()
        });
        let want = [42, 43, 0, 1, 2, 3, 20, 21, 22, 23, 60, 61, 62, 63, 40, 40, 40, 40];
        assert_eq!(places.collect::<Vec<_>>(), want);
        let alone = Course::new(keys, values, [(0, 0); 2]);
        assert_eq!(alone.ahead(0, 8).square(0), alone.ahead(0, 0).square(0));
    }
}
