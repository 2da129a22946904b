//! Products of Q4_0 weights, in the engine's packed layouts, with many vectors at once.
//!
//! Sixteen weight rows at a time are unpacked into a *panel* of byte codes, laid out as the dot-product
//! instructions want them, and multiplied with all vectors, sixteen per *tile*, while the panel is in the
//! first-level cache. Unpacking is paid once per panel, so it matters only for few vectors.
//!
//! Every set gives the same bits, those of the AVX2 and AVX-512 `matvec` over the stock rows: per output eight
//! float sums, one for the blocks `r`, `r + 8`, `r + 16`, ... of each `r` in 0..8, added as a tree at the end.
//! Panels and tiles keep their blocks in the order of that tree (see [`RESIDUES`]), so that a kernel needs one
//! running sum per output.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod panel;
mod scalar;
#[cfg(test)]
mod tests;
mod tiles;

use std::fmt;
use std::ops::Range;

pub use panel::{Layout, PanelRows, PanelSource};
pub use tiles::{ActTiles, TileBatch};
pub(crate) use tiles::{TokenBlock, block_places, fill_place};

#[cfg(target_arch = "x86_64")]
pub(super) use self::{amx::AMX, amx::available as amx_available, avx2::AVX2, avx512::AVX512};
pub(super) use scalar::SCALAR;

use super::{Kernels, misuse};
use crate::error::Result;
use panel::PanelBlock;

/// Weight rows of a panel and vectors of a full tile.
const LANES: usize = 16;

/// Panels that one call of an unpack function makes at most.
const BATCH: usize = 8;

/// Tiles that are multiplied with a panel before the next panel: at 1536 columns their 2 MB, less the panels,
/// stay in a second-level cache.
const TILES_PER_PASS: usize = 32;

/// The order in which a panel keeps its blocks, by block number modulo 8: after two neighbours, and again after
/// two of those pairs and two of those fours, the sums so far are added.
const RESIDUES: [usize; 8] = [0, 4, 2, 6, 1, 5, 3, 7];

/// How many of `blocks` blocks have each residue of [`RESIDUES`].
fn residue_counts(blocks: usize) -> [usize; 8] {
    RESIDUES.map(|residue| (blocks + 7 - residue) / 8)
}

/// Where in that order the blocks `r`, `r + 8`, ... start, for each `r`.
fn residue_starts(blocks: usize) -> [usize; 8] {
    let mut starts = [0; 8];
    let mut next = 0;
    for (residue, count) in RESIDUES.into_iter().zip(residue_counts(blocks)) {
        starts[residue] = next;
        next += count;
    }
    starts
}

/// Buffers that a thread reuses from product to product. They only grow.
#[derive(Debug, Default)]
pub struct GemmScratch {
    panels: Vec<PanelBlock>,
}

impl GemmScratch {
    /// Bytes for products with rows of `cols` weights.
    pub(crate) fn bytes(cols: usize) -> usize {
        BATCH * cols.div_ceil(32) * size_of::<PanelBlock>()
    }

    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }
}

/// The functions of a kernel set. Unsafe because they may use instructions that only some CPUs have; they are
/// reached through a [`Kernels`], and those exist only where the CPU has them.
#[derive(Clone, Copy)]
pub(super) struct Gemm {
    /// Unpacks one panel: rows `row ..` of weights in [`Layout::Lanes`], fewer than 16 at the end.
    unpack_lanes: unsafe fn(&PanelSource<'_>, row: usize, &mut [PanelBlock]),
    /// Unpacks the eight panels of a tile of 128 rows in [`Layout::DownTiles`], one after the other.
    unpack_down: unsafe fn(&PanelSource<'_>, tile: usize, &mut [PanelBlock]),
    /// Multiplies a panel with tiles of the same number of vectors.
    multiply: unsafe fn(Product<'_, '_>),
    /// What is faster for up to [`FEW`] vectors, if there is something.
    few: Option<&'static Gemm>,
}

/// Number of vectors for which starting the tile unit does not pay.
const FEW: usize = 4;

/// Weights that will be unpacked next. Kernels ask for them while they multiply.
struct Ahead<'a> {
    /// Codes, then scales, if those lie apart.
    parts: [&'a [u8]; 2],
    /// Cache lines to ask for per block of a tile.
    per_block: usize,
}

impl<'a> Ahead<'a> {
    /// Spreads the bytes over `blocks` blocks.
    fn new(parts: [&'a [u8]; 2], blocks: usize) -> Self {
        let lines: usize = parts.iter().map(|part| part.len().div_ceil(LINE)).sum();
        Ahead { parts, per_block: lines.div_ceil(blocks.max(1)) }
    }

    /// The next line.
    #[inline]
    fn next(&mut self) -> Option<&'a u8> {
        if self.parts[0].is_empty() {
            self.parts.swap(0, 1);
        }
        let line = self.parts[0].first()?;
        self.parts[0] = self.parts[0].get(LINE..).unwrap_or(&[]);
        Some(line)
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// One panel times some tiles. Whoever calls a `multiply` promises that the panel has at least one block, that
/// `tokens` is whole tiles of as many blocks, that `per_tile` is in 1..=16, `width` in 1..=16, and that `out`
/// has a place for vector `t` of all and row `r < width` at `t * stride + r`.
struct Product<'a, 'w> {
    panel: &'a [PanelBlock],
    tokens: &'a [TokenBlock],
    /// Vectors in each tile.
    per_tile: usize,
    out: &'a mut [f32],
    stride: usize,
    /// Rows of the panel that are wanted.
    width: usize,
    ahead: &'a mut Ahead<'w>,
}

impl Kernels {
    /// `out[t * stride + r]` = row `rows.start + r` of the weights · vector `t` of `xs`, for all vectors of `xs`.
    ///
    /// The rows start at a multiple of 16 and end at one or at the last row; multiples of 128 are best for
    /// [`Layout::DownTiles`]. An output depends on its row and its vector only. All sets give the same bits.
    ///
    /// Errors: [`Error::Internal`](crate::Error::Internal) if a length or the range does not fit.
    pub fn gemm(
        &self,
        w: &PanelRows<'_>,
        xs: TileBatch<'_>,
        scratch: &mut GemmScratch,
        out: &mut [f32],
        stride: usize,
    ) -> Result<()> {
        let (next_unit, rows, w) = (w.next, &w.rows, &w.of);
        w.check()?;
        let ends_well = rows.end.is_multiple_of(LANES) || rows.end == w.rows;
        if rows.start > rows.end || rows.end > w.rows || !rows.start.is_multiple_of(LANES) || !ends_well {
            return Err(misuse("gemm", format_args!("rows {rows:?} of {}", w.rows)));
        }
        if xs.cols() != w.cols {
            return Err(misuse("gemm", format_args!("{} activations, {} columns", xs.cols(), w.cols)));
        }
        if rows.is_empty() || xs.tokens() == 0 {
            return Ok(());
        }
        let needed = (xs.tokens() - 1).checked_mul(stride).and_then(|n| n.checked_add(rows.len()));
        if stride < rows.len() || needed.is_none_or(|n| n > out.len()) {
            let detail =
                format_args!("{} outputs for {} rows, stride {stride}", out.len(), rows.len()).to_string();
            return Err(misuse("gemm", detail));
        }
        let blocks = w.blocks();
        if blocks == 0 {
            for row in out.chunks_mut(stride).take(xs.tokens()) {
                row.iter_mut().take(rows.len()).for_each(|x| *x = 0.0);
            }
            return Ok(());
        }
        if scratch.panels.len() < BATCH * blocks {
            scratch.panels.resize(BATCH * blocks, PanelBlock::ZERO);
        }
        let gemm = self.gemm.few.filter(|_| xs.tokens() <= FEW).unwrap_or(&self.gemm);
        for pass in xs.passes(TILES_PER_PASS) {
            let steps: usize = pass.iter().map(|run| run.blocks.len()).sum();
            let mut row = rows.start;
            while row < rows.end {
                let panels = gemm.unpack(w, row, &mut scratch.panels);
                let count = panels.len().min((rows.end - row).div_ceil(LANES));
                let next = row + count * LANES;
                let parts = if next < rows.end { w.unit(next) } else { next_unit };
                let mut ahead = Ahead::new(parts, count * steps);
                for panel in
                    scratch.panels.chunks_exact(blocks).take(panels.end).skip(panels.start).take(count)
                {
                    let width = LANES.min(rows.end - row);
                    for run in pass.iter().filter(|run| !run.blocks.is_empty()) {
                        let at = run.first_token * stride + (row - rows.start);
                        let Some(out) = out.get_mut(at..) else { continue };
                        let (tokens, per_tile, ahead) = (run.blocks, run.per_tile, &mut ahead);
                        let product = Product { panel, tokens, per_tile, out, stride, width, ahead };
                        // SAFETY: the set exists, so the CPU has its instructions; lengths were checked above.
                        unsafe { (gemm.multiply)(product) };
                    }
                    row += LANES;
                }
            }
        }
        Ok(())
    }
}

impl Gemm {
    /// Unpacks the panels of row `row` and those that come with it; returns where they are from `row` on.
    fn unpack(&self, w: &PanelSource<'_>, row: usize, panels: &mut [PanelBlock]) -> Range<usize> {
        match w.layout {
            Layout::Lanes => {
                // SAFETY: the set exists, so the CPU has its instructions.
                unsafe { (self.unpack_lanes)(w, row, panels) };
                0..1
            }
            Layout::DownTiles => {
                // SAFETY: as above.
                unsafe { (self.unpack_down)(w, row / (BATCH * LANES), panels) };
                row / LANES % BATCH..BATCH
            }
        }
    }
}

impl fmt::Debug for Gemm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gemm").finish_non_exhaustive()
    }
}
