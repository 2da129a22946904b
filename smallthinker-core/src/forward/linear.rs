//! Matrix products, split over the engine's threads.

use std::ops::Range;

use crate::Result;
use crate::kernels::lanes::{LaneMatrix, PickedRows};
use crate::kernels::{Acts, Kernels};
use crate::pool::Team;
use crate::tensor::matrix::Matrix;
use crate::tensor::packed::Layout;
use crate::tiles::{Tile, tiles};

/// Outputs that one call of a kernel makes for several tokens; small enough for the stack and the L1 cache.
const BLOCK: usize = 4096;
/// Rows of weights that a prefill task takes: with 64 tokens, weights and activations stay in the L2 cache.
const TILE_ROWS: usize = 64;
const TILE_TOKENS: usize = BLOCK / TILE_ROWS;
/// Decode tasks per thread: enough to even out a thread that was held up, few enough to keep reads long.
const TASKS_PER_THREAD: usize = 16;

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
    matrices: &[Matrix<'_>],
    xs: &Acts,
    out: &mut [f32],
) -> Result<()> {
    let width = matrices.iter().map(|m| m.rows).sum();
    let shape = (TILE_TOKENS, columns_per_task(team, width, xs.tokens()));
    tiles(team, out, width, shape, &|tile| {
        let cols = tile.cols();
        let mut first = 0; // column of the current matrix's row 0
        for m in matrices {
            let rows = cols.start.max(first) - first..cols.end.clamp(first, first + m.rows) - first;
            if !rows.is_empty() {
                let at = first + rows.start - cols.start;
                product(kernels, m, rows, xs, tile, at)?;
            }
            first += m.rows;
        }
        Ok(())
    })
}

/// The products of rows `rows` of `m` with the tile's tokens, into its columns from `at` on.
fn product(
    kernels: &Kernels,
    m: &Matrix<'_>,
    rows: Range<usize>,
    xs: &Acts,
    tile: &mut Tile<'_>,
    at: usize,
) -> Result<()> {
    let tokens = tile.rows();
    if m.layout == Layout::Lanes {
        let matrix = LaneMatrix::new(m.data, m.rows, m.cols)?;
        for t in tokens {
            let out = &mut tile.row(t)[at..at + rows.len()];
            kernels.matvec_lanes(matrix, PickedRows::From(rows.start), xs.row(t), out)?;
        }
        return Ok(());
    }
    if m.layout == Layout::Neurons {
        use crate::kernels::neurons::NeuronBlock;
        use crate::tensor::packed;
        let tile_bytes = m.cols / 32 * packed::BLOCK;
        for t in tokens {
            let x = xs.row(t);
            let blocks: Vec<NeuronBlock> =
                (0..x.block_count()).map(|b| NeuronBlock::new(&x.block(b).unwrap())).collect();
            for r in rows.clone() {
                let mut out = [0.0; 128];
                if r == rows.start || r % 128 == 0 {
                    let c = r / 128;
                    kernels.down_tile(&m.data[c * tile_bytes..(c + 1) * tile_bytes], &blocks, &mut out)?;
                    for rr in r..rows.end.min((c + 1) * 128) {
                        tile.row(t)[at + rr - rows.start] = out[rr % 128];
                    }
                }
            }
        }
        return Ok(());
    }
    let mut block = [0.0f32; BLOCK];
    let per_call = (BLOCK / tokens.len().max(1)).max(1);
    for from in rows.clone().step_by(per_call) {
        let to = rows.end.min(from + per_call);
        let n = to - from;
        let out = &mut block[..n * tokens.len()];
        kernels.matmul(m.dtype, m.file_rows(from, to), n, m.cols, xs, tokens.clone(), out)?;
        for (t, values) in tokens.clone().zip(out.chunks_exact(n)) {
            let at = at + from - rows.start;
            tile.row(t)[at..at + n].copy_from_slice(values);
        }
    }
    Ok(())
}
