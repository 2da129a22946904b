//! Attention of a few query rows over one block of cached keys and values.
//!
//! Keys and values lie in [`Line`]s of 32 elements. A line of keys holds one dimension of 32 positions, so
//! that the scores of 32 positions add up in the lanes of registers, without sums across lanes. A line of
//! values holds 32 dimensions of one position. Both are read from beginning to end. Codes of 8 or 4 bits
//! lie in [`Square`]s and [`Square4`]s and are multiplied as integers, see `codes`.
//!
//! Every set gives the same bits. Scores and weighted sums are chains of fused multiply-adds, over dimensions
//! and over positions, ascending; `2^x` is one sequence of operations; the sum of the weights has one lane for
//! each position modulo 16. Which rows are computed together, or in which instructions, does not matter.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod calls;
mod coded_rows;
mod codes;
mod rows;
pub(super) mod scalar;
mod square;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::arena::{AnyBits, bytes_of};

pub use rows::QueryRows;
pub(crate) use rows::{finish, merge};
pub(crate) use square::Coded;
pub use square::{HALF_BYTES, Square, Square4};

/// Elements of a line.
pub const LANES: usize = 32;

/// Positions of a block: the step in which the running maximum of the softmax is renewed.
pub const BLOCK: usize = 256;

/// Lanes of the sum of weights: position `p` adds to lane `p % SUMS`.
pub(super) const SUMS: usize = 16;

/// 32 elements in one or two cache lines.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line<E>(pub [E; LANES]);

// SAFETY: an array of such elements; a size of 64 or 128 bytes leaves no padding.
unsafe impl<E: AnyBits> AnyBits for Line<E> {}
const _: () = assert!(size_of::<Line<u16>>() == 64 && size_of::<Line<f32>>() == 128);

/// Keys or values of a block, for one head.
#[derive(Debug, Clone, Copy)]
pub enum Lines<'a> {
    /// Half precision.
    F16(&'a [Line<u16>]),
    /// Single precision.
    F32(&'a [Line<f32>]),
    /// 8-bit codes, squares in the order of the lines.
    Q8(&'a [Square]),
    /// 4-bit codes, as above.
    Q4(&'a [Square4]),
}

/// Address and number of some lines or squares that lie one behind the other in memory, to be requested. No lines: (0, 0).
type Run = (usize, usize);

impl Lines<'_> {
    /// Where they are.
    fn run(&self) -> Run {
        match self {
            Lines::F16(lines) => (lines.as_ptr().addr(), lines.len()),
            Lines::F32(lines) => (lines.as_ptr().addr(), lines.len()),
            Lines::Q8(squares) => (squares.as_ptr().addr(), squares.len()),
            Lines::Q4(squares) => (squares.as_ptr().addr(), squares.len()),
        }
    }

    /// Of keys, the bytes of some groups of 32 positions of the block; none of groups that it lacks.
    pub(crate) fn groups(&self, groups: Range<usize>) -> &[u8] {
        let bytes = match self {
            Lines::F16(lines) => bytes_of(lines),
            Lines::F32(lines) => bytes_of(lines),
            Lines::Q8(squares) => bytes_of(squares),
            Lines::Q4(squares) => bytes_of(squares),
        };
        let group = bytes.len() / (BLOCK / LANES);
        bytes.get(groups.start * group..groups.end * group).unwrap_or(&[])
    }
}

/// Lines of keys in a block: of 32 positions after another, `head_dim` each.
pub const fn key_lines(head_dim: usize) -> usize {
    BLOCK / LANES * head_dim
}

/// Lines of values in a block: of 32 dimensions after another, `BLOCK` each. The last ones are padded with zeros
/// if `head_dim` asks for it.
pub const fn value_lines(head_dim: usize) -> usize {
    BLOCK * head_dim.div_ceil(LANES)
}

/// Squares of keys in a block: of 32 positions after another, all dimensions. Of values as many: of 32 dimensions after
/// another, all positions. Dimensions that `head_dim` lacks count for nothing.
pub const fn squares(head_dim: usize) -> usize {
    BLOCK / LANES * head_dim.div_ceil(LANES)
}

/// Products of query rows with keys, added to `out`. Whoever calls promises: `1 <= rows <= Functions::rows`, `q` is
/// `[dims][rows]`, `keys` is whole groups of 32 positions (`dims` lines each), `out`
/// has `rows` rows and room for the groups from `first` on.
pub(super) struct Score<'a, L> {
    pub(super) rows: usize,
    pub(super) q: &'a [f32],
    pub(super) dims: usize,
    pub(super) keys: &'a [L],
    /// Where in the block the first key is.
    pub(super) first: usize,
    /// The lines that come after these keys, requested while the last group is computed with where keys come from memory.
    pub(super) next: Run,
    pub(super) out: &'a mut [[f32; BLOCK]],
}

/// Sums of 32 dimensions of values, weighted, added to `out`. Whoever calls promises: `1 <= rows <=
/// Functions::rows`, `weights` has `rows` rows, `positions` lies inside a block, `values` is the lines of these
/// positions, and `out` has 32 elements at each multiple of `width`, for every row.
pub(super) struct Mix<'a, L> {
    pub(super) rows: usize,
    pub(super) weights: &'a [[f32; BLOCK]],
    pub(super) positions: Range<usize>,
    pub(super) values: &'a [L],
    /// Those that come after these values, as above.
    pub(super) next: Run,
    pub(super) width: usize,
    pub(super) out: &'a mut [f32],
}

/// Turns scores (a multiple of 32, the first of a position that is one, too) into weights `2^(score - max)`
/// and adds them to the sums. Takes the maximum so far; returns the new one and what earlier sums shrink by.
type Soften = unsafe fn(scores: &mut [f32], max: f32, sums: &mut [f32; SUMS]) -> (f32, f32);

/// The attention functions of a kernel set. Unsafe because they may use instructions that only some CPUs
/// have; they are reached through a [`Kernels`](super::Kernels) value only.
pub(super) struct Functions {
    /// Rows that one call takes at most.
    pub(super) rows: usize,
    pub(super) score: unsafe fn(Score<'_, Line<f32>>),
    pub(super) soften: Soften,
    pub(super) mix: unsafe fn(Mix<'_, Line<f32>>),
    /// The same values in single precision, as far as both go.
    pub(super) widen_f16: unsafe fn(&[Line<u16>], &mut [Line<f32>]),
    /// Where that is faster: functions that widen on the way.
    pub(super) fused: Option<Fused>,
    /// [`rows::merge_parts`].
    pub(super) merge: unsafe fn(&mut [f32], &[f32], f32, f32),
    /// What is different for codes.
    codes: codes::Functions,
}

/// As `score` and `mix`, of the other element types. The same bits.
pub(super) struct Fused {
    pub(super) score_f16: unsafe fn(Score<'_, Line<u16>>),
    pub(super) mix_f16: unsafe fn(Mix<'_, Line<u16>>),
}

/// Coefficients of `2^f` for `f` in -0.5..=0.5, highest power first, the last one 1: a relative error of
/// 2.6e-9 before rounding.
pub(super) const EXP2: [f32; 7] =
    [1.559_467_8e-4, 1.340_664_3e-3, 9.617_693e-3, 5.550_310_4e-2, 0.240_226_52, 0.693_147_24, 1.0];

/// As [`EXP2`], where a relative error of 2.9e-6 will do.
pub(super) const EXP2_SHORT: [f32; 5] = [9.582_853e-3, 5.590_642_6e-2, 0.240_240_99, 0.693_124_2, 1.0];

/// Adding this rounds to an integer `n` and leaves `n + 127`, the exponent of `2^n`, in the lowest bits.
pub(super) const EXP2_ROUND: f32 = 12_582_912.0 + 127.0;

/// Below this `2^x` counts as zero: the scale would not be a normal number.
pub(super) const EXP2_MIN: f32 = -126.0;
