//! A weight matrix in memory, as the products see it.

use super::packed::Layout;
use super::{DType, dequantize};
use crate::{Error, Result};

/// A whole matrix, borrowed from wherever it lives.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) dtype: DType,
    pub(crate) layout: Layout,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) data: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// The bytes of rows `from..to` of a matrix in [`Layout::Rows`].
    pub(crate) fn file_rows(&self, from: usize, to: usize) -> &'a [u8] {
        let row_bytes = self.data.len() / self.rows.max(1);
        self.data.get(from * row_bytes..to * row_bytes).unwrap_or(&[])
    }

    /// The values of one row, into `out`. Errors: [`Error::Internal`] if a length does not fit.
    pub(crate) fn row_values(&self, row: usize, out: &mut [f32]) -> Result<()> {
        match self.layout {
            Layout::Rows => dequantize(self.dtype, self.file_rows(row, row + 1), out),
            Layout::Lanes => {
                let file = super::packed::unpack_lanes_row(self.data, row, self.rows, self.cols);
                dequantize(self.dtype, &file, out)
            }
            Layout::Neurons => {
                Err(Error::Internal { message: "a row of a matrix that lies by neuron".into() })
            }
        }
    }
}
