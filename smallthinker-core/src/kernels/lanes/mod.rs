//! Products of single vectors with Q4_0 rows in [`Layout::Lanes`](crate::tensor::packed::Layout::Lanes): all rows of
//! a range, or some of them.
//!
//! Every set gives the same bits: eight sums, one per lane, each of its blocks in ascending order with one fused
//! multiply-add per block, added at the end in one fixed tree.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(super) mod avxvnni;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod scalar;
#[cfg(test)]
mod tests;

use super::acts::{ActGroup, ActRow, GROUP};
use super::{Kernels, misuse};
use crate::error::Result;
use crate::tensor::DType;
use crate::tensor::packed::{GROUP_CODES, GROUP_SCALES, Layout, groups, matrix_bytes};

/// 256 quantized activations in the order of a group's codes: `[8 quads][8 blocks][4]`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct LaneGroup {
    pub(super) q: [[[i8; 4]; 8]; 8],
    /// Codes count from 0 while weights count from -8: what that adds to each block's integer.
    pub(super) offset: [i32; 8],
    pub(super) scale: [f32; 8],
}

impl LaneGroup {
    pub(super) const ZERO: LaneGroup = LaneGroup { q: [[[0; 4]; 8]; 8], offset: [0; 8], scale: [0.0; 8] };

    pub(super) fn new(group: &ActGroup) -> LaneGroup {
        const { assert!(GROUP == 8 * 32) };
        let mut lanes = LaneGroup { scale: group.scale, ..LaneGroup::ZERO };
        for (block, q) in group.q.as_chunks::<32>().0.iter().enumerate() {
            for (quad, q) in q.as_chunks::<4>().0.iter().enumerate() {
                lanes.q[quad][block] = *q;
            }
        }
        for (offset, sums) in lanes.offset.iter_mut().zip(group.sums.as_chunks::<2>().0) {
            *offset = -8 * (i32::from(sums[0]) + i32::from(sums[1]));
        }
        lanes
    }
}

/// The codes and the scales of a row, by group.
pub(in crate::kernels) type Row<'a> = (&'a [[u8; GROUP_CODES]], &'a [[u8; GROUP_SCALES]]);

/// A Q4_0 matrix in [`Layout::Lanes`].
#[derive(Clone, Copy)]
pub(crate) struct LaneMatrix<'a> {
    pub(super) codes: &'a [[u8; GROUP_CODES]],
    pub(super) scales: &'a [[u8; GROUP_SCALES]],
    pub(super) groups: usize,
    rows: usize,
    cols: usize,
}

impl<'a> LaneMatrix<'a> {
    /// Views `data`, the whole matrix. Errors: [`Error::Internal`](crate::Error::Internal) if its length does not fit.
    pub(crate) fn new(data: &'a [u8], rows: usize, cols: usize) -> Result<LaneMatrix<'a>> {
        if matrix_bytes(DType::Q4_0, Layout::Lanes, rows, cols) != Some(data.len()) {
            return Err(misuse("lanes", format_args!("{} bytes for {rows} rows of {cols}", data.len())));
        }
        let groups = groups(cols);
        let (codes, scales) = data.split_at(rows * groups * GROUP_CODES);
        Ok(LaneMatrix { codes: codes.as_chunks().0, scales: scales.as_chunks().0, groups, rows, cols })
    }

    /// The codes and the scales of a row, if there is such a row.
    #[inline]
    pub(super) fn row(&self, row: usize) -> Option<Row<'a>> {
        let at = row * self.groups..(row + 1) * self.groups;
        Some((self.codes.get(at.clone())?, self.scales.get(at)?))
    }

    /// The codes and the scales of the row of output `i`; empty if there is none.
    #[inline]
    pub(super) fn picked(&self, rows: PickedRows<'_>, i: usize) -> Row<'a> {
        rows.get(i).and_then(|row| self.row(row)).unwrap_or_default()
    }

    /// The number of the first group of the row of output `i`. There need not be such a row.
    #[inline]
    pub(super) fn first_group(&self, rows: PickedRows<'_>, i: usize) -> Option<usize> {
        rows.get(i).map(|row| row * self.groups)
    }

    /// The codes of a row that is known ahead of time to be wanted.
    pub(crate) fn row_codes(&self, row: usize) -> &'a [u8] {
        self.row(row).map_or(&[], |(codes, _)| codes.as_flattened())
    }

    /// The scales of such a row.
    pub(crate) fn row_scales(&self, row: usize) -> &'a [u8] {
        self.row(row).map_or(&[], |(_, scales)| scales.as_flattened())
    }
}

/// Which rows to multiply; output `i` belongs to the `i`-th of them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PickedRows<'a> {
    /// As many as there are outputs, from this one on.
    From(usize),
    /// These.
    List(&'a [u32]),
}

impl PickedRows<'_> {
    /// The row of output `i`; behind the last output, what will probably be wanted next.
    #[inline]
    pub(super) fn get(&self, i: usize) -> Option<usize> {
        match self {
            PickedRows::From(first) => Some(first + i),
            PickedRows::List(list) => list.get(i).map(|&row| row as usize),
        }
    }
}

/// The arguments of a kernel. `x` has the matrix's groups; every row exists.
pub(super) struct LanesJob<'a> {
    pub(super) matrix: LaneMatrix<'a>,
    pub(super) rows: PickedRows<'a>,
    pub(super) x: &'a [LaneGroup],
    pub(super) out: &'a mut [f32],
}

/// Unsafe because it may use instructions that only some CPUs have.
///
/// Implementations keep closures out of their loops: one that is handed to a function of the standard library has
/// target features that this function lacks, and may stay a call, with vectors passed through memory.
pub(super) type LanesFn = unsafe fn(LanesJob<'_>);

impl Kernels {
    /// `out[i]` = row `i` of `rows` · `x`.
    ///
    /// Errors: [`Error::Internal`](crate::Error::Internal) if a length does not fit, a row does not exist, or `x`
    /// has no lanes.
    pub(crate) fn matvec_lanes(
        &self,
        matrix: LaneMatrix<'_>,
        rows: PickedRows<'_>,
        x: ActRow<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let end = match rows {
            PickedRows::From(first) => first.saturating_add(out.len()),
            PickedRows::List(list) if list.len() != out.len() => {
                return Err(misuse("lanes", format_args!("{} rows, {} outputs", list.len(), out.len())));
            }
            PickedRows::List(list) => list.iter().max().map_or(0, |&last| last as usize + 1),
        };
        if end > matrix.rows || x.cols != matrix.cols || x.lanes.len() != matrix.groups {
            let detail = format_args!(
                "row {end} of {}, vector of {} ({} groups) for {} columns",
                matrix.rows,
                x.cols,
                x.lanes.len(),
                matrix.cols
            );
            return Err(misuse("lanes", detail));
        }
        // SAFETY: the set exists, so the CPU has its instructions; lengths and rows were checked above.
        unsafe { (self.lanes)(LanesJob { matrix, rows, x: x.lanes, out }) };
        Ok(())
    }
}
