//! Matrix products, split over the engine's threads.

use std::ops::Range;

use crate::Result;
use crate::kernels::{Acts, Kernels};
use crate::model::weights::Matrix;
use crate::pool::Team;
use crate::tensor::DType;
use crate::tiles::tiles;

/// Outputs that one call of a kernel makes for several tokens; small enough for the stack and the L1 cache.
const BLOCK: usize = 4096;
/// Rows of weights that a prefill task takes: with 64 tokens, weights and activations stay in the L2 cache.
const TILE_ROWS: usize = 64;
const TILE_TOKENS: usize = BLOCK / TILE_ROWS;
/// Decode tasks per thread: enough to even out a thread that was held up, few enough to keep reads long.
const TASKS_PER_THREAD: usize = 4;

/// Weight rows of one type, wherever they live.
pub(crate) trait Rows: Sync {
    fn dtype(&self) -> DType;
    fn n_rows(&self) -> usize;
    fn cols(&self) -> usize;
    fn rows(&self, from: usize, to: usize) -> &[u8];
}

impl Rows for Matrix {
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn n_rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn rows(&self, from: usize, to: usize) -> &[u8] {
        Matrix::rows(self, from, to)
    }
}

/// How many output columns a task takes when `width` of them are made for `tokens` vectors.
pub(crate) fn columns_per_task(team: &Team<'_>, width: usize, tokens: usize) -> usize {
    match tokens {
        0 | 1 => width.div_ceil(team.threads() * TASKS_PER_THREAD).next_multiple_of(16),
        _ => TILE_ROWS,
    }
}

/// `out[t]` = the products of vector `t` of `xs` with every row of the matrices, one matrix after the other.
/// `out` has one row per vector, as wide as the matrices have rows together.
pub(crate) fn linear(
    team: &Team<'_>,
    kernels: &Kernels,
    matrices: &[&dyn Rows],
    xs: &Acts,
    out: &mut [f32],
) -> Result<()> {
    let width = matrices.iter().map(|m| m.n_rows()).sum();
    let shape = (TILE_TOKENS, columns_per_task(team, width, xs.tokens()));
    tiles(team, out, width, shape, &|tile| {
        let (tokens, cols) = (tile.rows(), tile.cols());
        let mut first = 0; // column of the current matrix's row 0
        for &m in matrices {
            let rows = cols.start.max(first) - first..cols.end.clamp(first, first + m.n_rows()) - first;
            product(kernels, m, rows, xs, tokens.clone(), &mut |t, row, values| {
                let at = first + row - cols.start;
                tile.row(t)[at..at + values.len()].copy_from_slice(values);
            })?;
            first += m.n_rows();
        }
        Ok(())
    })
}

/// Computes rows `rows` of `m` for `tokens`, and hands out each token's values of a block of rows, with the
/// number of the block's first row.
pub(crate) fn product(
    kernels: &Kernels,
    m: &dyn Rows,
    rows: Range<usize>,
    xs: &Acts,
    tokens: Range<usize>,
    put: &mut dyn FnMut(usize, usize, &[f32]),
) -> Result<()> {
    let mut block = [0.0f32; BLOCK];
    let per_call = (BLOCK / tokens.len().max(1)).max(1);
    for from in rows.clone().step_by(per_call) {
        let to = rows.end.min(from + per_call);
        let n = to - from;
        let out = &mut block[..n * tokens.len()];
        kernels.matmul(m.dtype(), m.rows(from, to), n, m.cols(), xs, tokens.clone(), out)?;
        for (t, values) in tokens.clone().zip(out.chunks_exact(n)) {
            put(t, from, values);
        }
    }
    Ok(())
}
