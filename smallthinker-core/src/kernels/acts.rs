//! Activations: the vectors that weights are multiplied with, as `f32` and, for quantized weights, as 8-bit
//! blocks. One block format serves every weight type.

use super::Kernels;
use super::lanes::LaneGroup;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Vectors up to which a batch is multiplied one vector at a time: then it has the groups in the order of
/// [`Layout::Lanes`](crate::tensor::packed::Layout::Lanes) too.
pub(crate) const LANE_TOKENS: usize = 4;

/// Elements of one activation group, the unit in which the quantized kernels walk a row.
pub(crate) const GROUP: usize = 256;

/// 256 quantized activations: element `i` is `scale[i / 32] * q[i]`.
///
/// Values are in -127..=127 (never -128: the kernels negate them). `sums` holds the sum of each 16 values, so
/// that the constant offsets and minima of weight types cost one product per block, not one per element.
/// A block with a value that isn't finite has scale NaN and zero values, so that its products are NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub struct ActGroup {
    pub(crate) q: [i8; GROUP],
    pub(crate) sums: [i16; GROUP / 16],
    pub(crate) scale: [f32; GROUP / 32],
}

impl ActGroup {
    pub(crate) const ZERO: ActGroup =
        ActGroup { q: [0; GROUP], sums: [0; GROUP / 16], scale: [0.0; GROUP / 32] };
}

/// A batch of activation vectors with reusable buffers: `n` tokens of `cols` elements. Buffers only grow.
#[derive(Debug, Default)]
pub struct Acts {
    tokens: usize,
    cols: usize,
    groups_per_row: usize,
    values: Vec<f32>,
    groups: Vec<ActGroup>,
    /// Of small batches only.
    lanes: Vec<LaneGroup>,
}

/// One vector of an [`Acts`].
#[derive(Debug, Clone, Copy)]
pub struct ActRow<'a> {
    pub(crate) cols: usize,
    pub(crate) values: &'a [f32],
    pub(crate) groups: &'a [ActGroup],
    pub(crate) lanes: &'a [LaneGroup],
}

/// The forms in which products need their vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forms {
    /// In `f32`, for float weights.
    float: bool,
    /// As 8-bit blocks, for quantized weights.
    quantized: bool,
}

impl Forms {
    /// What weights of these types need.
    pub(crate) fn of(dtypes: &[DType]) -> Forms {
        let quantized = dtypes.iter().any(|d| d.is_quantized());
        Forms { float: !dtypes.iter().all(|d| d.is_quantized()), quantized }
    }
}

/// 32 quantized activations of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActBlock<'a> {
    /// The integers, in -127..=127.
    pub q: &'a [i8; 32],
    /// What one integer step is worth; NaN if an input of the block was not finite.
    pub scale: f32,
    /// Sums of the first and the last 16 integers.
    pub sums: [i16; 2],
}

impl Acts {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over `values` (`[tokens][cols]`, row by row).
    ///
    /// With `quantized` also makes the 8-bit blocks that quantized weights need, if 32 divides `cols`
    /// (otherwise only the `f32` side exists, which is all that float weights need). Values that are not
    /// finite are allowed and make the products that they take part in NaN.
    ///
    /// Errors: [`Error::Internal`] if `values` is not a whole number of rows.
    pub fn set(&mut self, kernels: &Kernels, values: &[f32], cols: usize, quantized: bool) -> Result<()> {
        // Zero divides only zero, which is what is wanted here.
        if !values.len().is_multiple_of(cols) {
            return Err(Error::Internal {
                message: format!("activations: {} values are not rows of {cols}", values.len()),
            });
        }
        let forms = Forms { float: true, quantized };
        self.prepare(values, cols, forms);
        if self.groups_per_row > 0 {
            let rows = values.chunks_exact(cols).zip(self.groups.chunks_exact_mut(self.groups_per_row));
            for (row, groups) in rows {
                kernels.quantize_acts(row, groups)?;
            }
            self.set_lanes();
        }
        Ok(())
    }

    /// As [`set`](Self::set), in only the forms that are needed, and without the 8-bit blocks' contents: `fill` gets
    /// the place for them, with the number of groups per row, if they are needed.
    pub(crate) fn set_with(
        &mut self,
        values: &[f32],
        cols: usize,
        forms: Forms,
        fill: impl FnOnce(&mut [ActGroup], usize) -> Result<()>,
    ) -> Result<()> {
        self.prepare(values, cols, forms);
        if self.groups_per_row > 0 {
            fill(&mut self.groups, self.groups_per_row)?;
            self.set_lanes();
        }
        Ok(())
    }

    /// Exchanges the values for whole rows of `cols`, to be multiplied with float weights, without a copy.
    pub(crate) fn swap_floats(&mut self, values: &mut Vec<f32>, cols: usize) {
        self.lanes.clear();
        self.groups.clear();
        std::mem::swap(&mut self.values, values);
        (self.cols, self.groups_per_row) = (cols, 0);
        self.tokens = self.values.len().checked_div(cols).unwrap_or(0);
    }

    /// Makes room. No clear of the groups: `quantize_acts` rewrites every group that it covers, padding included.
    fn prepare(&mut self, values: &[f32], cols: usize, forms: Forms) {
        self.tokens = values.len().checked_div(cols).unwrap_or(0);
        self.cols = cols;
        self.values.clear();
        self.lanes.clear();
        let quantized = forms.quantized && cols > 0 && cols.is_multiple_of(32);
        if forms.float || !quantized {
            self.values.extend_from_slice(values);
        }
        self.groups_per_row = if quantized { cols.div_ceil(GROUP) } else { 0 };
        self.groups.resize(self.tokens * self.groups_per_row, ActGroup::ZERO);
    }

    fn set_lanes(&mut self) {
        if self.tokens <= LANE_TOKENS {
            self.lanes.extend(self.groups.iter().map(LaneGroup::new));
        }
    }

    /// Takes over some vectors of `from`, in the order of `tokens`, without quantizing again.
    ///
    /// Errors: [`Error::Internal`] if a token is not in `from`.
    pub fn gather(&mut self, from: &Acts, tokens: impl Iterator<Item = usize>) -> Result<()> {
        self.tokens = 0;
        self.cols = from.cols;
        self.groups_per_row = from.groups_per_row;
        self.values.clear();
        self.groups.clear();
        self.lanes.clear();
        for token in tokens {
            if token >= from.tokens {
                let message = format!("activations: token {token} of {}", from.tokens);
                return Err(Error::Internal { message });
            }
            let row = from.row(token);
            self.values.extend_from_slice(row.values);
            self.groups.extend_from_slice(row.groups);
            self.tokens += 1;
        }
        self.set_lanes();
        Ok(())
    }

    /// Number of vectors.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Elements of each vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether the vectors have the order of lanes too; batches of more than a few vectors don't.
    pub(crate) fn has_lanes(&self) -> bool {
        !self.lanes.is_empty()
    }

    /// Whether the 8-bit side exists.
    pub fn is_quantized(&self) -> bool {
        self.groups_per_row > 0
    }

    /// Vector number `token`; an empty row if there is none.
    pub fn row(&self, token: usize) -> ActRow<'_> {
        let part = |width: usize| {
            let start = token.checked_mul(width)?;
            Some(start..start.checked_add(width)?)
        };
        let values = part(self.cols).and_then(|range| self.values.get(range));
        let groups = part(self.groups_per_row).and_then(|range| self.groups.get(range));
        let lanes = part(self.groups_per_row).and_then(|range| self.lanes.get(range));
        ActRow {
            cols: self.cols,
            values: values.unwrap_or(&[]),
            groups: groups.unwrap_or(&[]),
            lanes: lanes.unwrap_or(&[]),
        }
    }
}

impl<'a> ActRow<'a> {
    pub(crate) const EMPTY: ActRow<'static> = ActRow { cols: 0, values: &[], groups: &[], lanes: &[] };

    /// The vector in `f32`.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Number of 8-bit blocks of 32 elements; 0 if the row has no 8-bit side.
    pub fn block_count(&self) -> usize {
        if self.groups.is_empty() { 0 } else { self.cols / 32 }
    }

    /// 8-bit block number `i`, if the row has it.
    pub fn block(&self, i: usize) -> Option<ActBlock<'a>> {
        if i >= self.block_count() {
            return None;
        }
        let group = self.groups.get(i / 8)?;
        let q = group.q.as_chunks().0.get(i % 8)?;
        let sums = *group.sums.as_chunks().0.get(i % 8)?;
        Some(ActBlock { q, scale: *group.scale.get(i % 8)?, sums })
    }
}
