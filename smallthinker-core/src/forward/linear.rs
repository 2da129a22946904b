//! Matrix products, split over the engine's threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::Result;
use crate::kernels::gemm::{self, ActTiles, GemmScratch, PanelRows, PanelSource, TileBatch, fill_place};
use crate::kernels::lanes::{LaneMatrix, PickedRows};
use crate::kernels::{ActGroup, Acts, GROUP, Kernels};
use crate::pool::Team;
use crate::tensor::matrix::Matrix;
use crate::tensor::packed::{Layout, TILE};
use crate::tiles::{Tile, runs, tiles};

/// Outputs that one call of a kernel makes for several tokens; small enough for the stack and the L1 cache.
const BLOCK: usize = 4096;
/// Rows of weights that a prefill task takes: with 64 tokens, weights and activations stay in the L2 cache.
const TILE_ROWS: usize = 64;
const TILE_TOKENS: usize = BLOCK / TILE_ROWS;
/// Rows that packed weights are unpacked by.
const PANEL: usize = 16;
/// Rows of weights that a thread reads at a time at least, of those for a single vector: few enough that threads
/// finish together.
pub(super) const UNIT: usize = 16;
/// Buffers for products with many vectors, kept between calls.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) tiles: ActTiles,
    /// One for each task that runs at a time.
    spare: Mutex<Vec<TaskBuffers>>,
}

/// What a task needs for itself.
#[derive(Default)]
pub(crate) struct TaskBuffers {
    pub(crate) gemm: GemmScratch,
    pub(crate) out: [Vec<f32>; 2],
    pub(crate) groups: Vec<ActGroup>,
}

impl TaskBuffers {
    /// Bytes that a task takes for each vector of a batch, at most, besides what it unpacks.
    pub(crate) const BYTES_PER_VECTOR: usize = 4 * (TILE + 32) + 32 * size_of::<ActGroup>() / GROUP;
}

impl Batch {
    /// Lends buffers to a task.
    pub(crate) fn with<R>(spare: &Mutex<Vec<TaskBuffers>>, task: impl FnOnce(&mut TaskBuffers) -> R) -> R {
        let lock = || spare.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffers = lock().pop().unwrap_or_default();
        let result = task(&mut buffers);
        lock().push(buffers);
        result
    }

    /// The tiles and the spare buffers, to be used at the same time.
    pub(crate) fn parts(&mut self) -> (&mut ActTiles, &Mutex<Vec<TaskBuffers>>) {
        (&mut self.tiles, &self.spare)
    }
}

/// Arranges batches of vectors of `xs` for products with packed weights: batch `b` has `sizes[b]` vectors, of which
/// number `i` is vector `pick(b, i)` of `xs`.
pub(crate) fn arrange(
    team: &Team<'_>,
    xs: &Acts,
    sizes: &[usize],
    pick: &(dyn Fn(usize, usize) -> usize + Sync),
    out: &mut ActTiles,
) -> Result<()> {
    let blocks = out.prepare(sizes.iter().copied(), xs.cols());
    let places = out.tiles();
    tiles(team, out.blocks_mut(), blocks, (1, blocks), &|tile| {
        let t = tile.rows().start;
        let (batch, range) = &places[t];
        let vectors = range.clone().map(|i| xs.row(pick(*batch, i)));
        vectors.enumerate().try_for_each(|(place, row)| fill_place(tile.row(t), place, row))
    })
}

/// `out[t]` = the products of vector `t` of `xs` with every row of the matrices, one matrix after the other.
/// `out` has one row per vector, as wide as the matrices have rows together.
pub(crate) fn linear(
    team: &Team<'_>,
    kernels: &Kernels,
    matrices: &[Matrix<'_>],
    xs: &Acts,
    batch: &mut Batch,
    out: &mut [f32],
) -> Result<()> {
    let width = matrices.iter().map(|m| m.rows).sum();
    let packed = |m: &Matrix<'_>| m.layout != Layout::Rows;
    // Whatever lies by neuron has no product with single vectors here.
    let one_by_one = xs.has_lanes() && matrices.iter().all(|m| m.layout != Layout::Neurons);
    let (act_tiles, spare) = batch.parts();
    let together = !one_by_one && matrices.iter().any(packed);
    if together {
        arrange(team, xs, &[xs.tokens()], &|_, i| i, act_tiles)?;
    }
    // A packed matrix wants all vectors at once: its weights are unpacked for each task.
    let tokens = if together { xs.tokens() } else { TILE_TOKENS };
    let task = |tile: &mut Tile<'_>| {
        let cols = tile.cols();
        let mut first = 0; // column of the current matrix's row 0
        for m in matrices {
            let rows = cols.start.max(first) - first..cols.end.clamp(first, first + m.rows) - first;
            let at = first + rows.start - cols.start.min(first + rows.start);
            if rows.is_empty() {
            } else if !packed(m) {
                product(kernels, m, rows, xs, tile, at)?;
            } else if one_by_one {
                single_products(kernels, m, rows, xs, tile, at)?;
            } else {
                Batch::with(spare, |buffers| {
                    // Panels start at multiples of their size.
                    let whole = rows.start / PANEL * PANEL..rows.end.next_multiple_of(PANEL).min(m.rows);
                    let out = &mut buffers.out[0];
                    let source = panels(m);
                    let rows_of = PanelRows { next: source.unit(whole.end), ..source.rows(whole.clone()) };
                    gemm(kernels, &rows_of, act_tiles.batch(0), &mut buffers.gemm, out)?;
                    for (t, values) in tile.rows().zip(out.chunks_exact(whole.len())) {
                        let values = &values[rows.start - whole.start..rows.end - whole.start];
                        tile.row(t)[at..at + values.len()].copy_from_slice(values);
                    }
                    Ok::<(), crate::Error>(())
                })?;
            }
            first += m.rows;
        }
        Ok(())
    };
    if xs.tokens() == 1 {
        let bytes = matrices.iter().map(|m| m.data.len()).sum();
        return runs(&team.for_bytes(bytes), out, width, (UNIT, usize::MAX), &task);
    }
    tiles(team, out, width, (tokens, TILE_ROWS), &task)
}

/// A packed matrix as the source of panels.
pub(crate) fn panels<'a>(m: &Matrix<'a>) -> PanelSource<'a> {
    let layout = if m.layout == Layout::Neurons { gemm::Layout::DownTiles } else { gemm::Layout::Lanes };
    PanelSource { layout, data: m.data, rows: m.rows, cols: m.cols }
}

/// Rows of a packed matrix, whole panels, times all vectors: `out` starts with `[vectors][rows]`.
pub(crate) fn gemm(
    kernels: &Kernels,
    rows: &PanelRows<'_>,
    xs: TileBatch<'_>,
    scratch: &mut GemmScratch,
    out: &mut Vec<f32>,
) -> Result<()> {
    let width = rows.rows.len();
    if out.len() < xs.tokens() * width {
        out.resize(xs.tokens() * width, 0.0);
    }
    kernels.gemm(rows, xs, scratch, out, width)
}

/// The products of rows `rows` of a matrix in lanes with few vectors, into the tile's columns from `at` on.
fn single_products(
    kernels: &Kernels,
    m: &Matrix<'_>,
    rows: Range<usize>,
    xs: &Acts,
    tile: &mut Tile<'_>,
    at: usize,
) -> Result<()> {
    let matrix = LaneMatrix::new(m.data, m.rows, m.cols)?;
    for t in tile.rows() {
        let out = &mut tile.row(t)[at..at + rows.len()];
        kernels.matvec_lanes(matrix, PickedRows::From(rows.start), xs.row(t), out)?;
    }
    Ok(())
}

/// The products of rows `rows` of a matrix as in the file with the tile's tokens, into its columns from `at` on.
fn product(
    kernels: &Kernels,
    m: &Matrix<'_>,
    rows: Range<usize>,
    xs: &Acts,
    tile: &mut Tile<'_>,
    at: usize,
) -> Result<()> {
    let tokens = tile.rows();
    let mut block = [0.0f32; BLOCK];
    let per_call = (BLOCK / tokens.len().max(1)).max(1);
    for from in rows.clone().step_by(per_call) {
        let to = rows.end.min(from + per_call);
        let n = to - from;
        // More vectors than fit: some at a time.
        for first in tokens.clone().step_by(BLOCK) {
            let some = first..tokens.end.min(first + BLOCK);
            let out = &mut block[..n * some.len()];
            kernels.matmul(m.dtype, m.file_rows(from, to), n, m.cols, xs, some.clone(), out)?;
            for (t, values) in some.zip(out.chunks_exact(n)) {
                let at = at + from - rows.start;
                tile.row(t)[at..at + n].copy_from_slice(values);
            }
        }
    }
    Ok(())
}
