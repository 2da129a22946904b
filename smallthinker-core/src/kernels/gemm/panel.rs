//! Packed weights as the engine keeps them, and panels of unpacked ones.

use std::ops::Range;

use super::{LANES, misuse, residue_starts};
use crate::error::Result;
use crate::kernels::lanes::Row;
use crate::tensor::block::{SUB, f16};

/// How packed Q4_0 weights lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// By row. Each row has `groups` = ⌈blocks / 8⌉ groups of 128 code bytes, missing blocks being zero:
    /// byte `32 k + 4 i + e` (k, e < 4, i < 8) of group `g` holds element `4 k + e` of block `8 g + i` in its
    /// low and element `16 + 4 k + e` in its high half. After the codes of all rows come the scales, eight
    /// halves per row and group.
    Lanes,
    /// By column, for 128 rows at a time (padded with zeros at the end), one block of 32 columns after the
    /// other: 128 scales, then 64 code bytes per column. Byte `16 l + 4 m + e` (l, m, e < 4) holds row
    /// `16 m + 4 l + e` in its low and row `64 + 16 m + 4 l + e` in its high half.
    DownTiles,
}

/// Bytes of a block of 32 columns in [`Layout::DownTiles`].
pub(super) const DOWN_BLOCK: usize = 128 * 2 + SUB * 64;

/// A packed weight matrix.
#[derive(Debug, Clone, Copy)]
pub struct PanelSource<'a> {
    /// How `data` lies.
    pub layout: Layout,
    /// Codes and scales.
    pub data: &'a [u8],
    /// Outputs.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}

/// Some rows of a packed weight matrix.
#[derive(Debug, Clone)]
pub struct PanelRows<'a> {
    /// The matrix.
    pub of: PanelSource<'a>,
    /// Its rows.
    pub rows: Range<usize>,
    /// Bytes that the next product will begin with, asked for early; a hint.
    pub next: [&'a [u8]; 2],
}

impl<'a> PanelSource<'a> {
    /// Rows `rows`, with nothing known of what comes next.
    pub fn rows(self, rows: Range<usize>) -> PanelRows<'a> {
        PanelRows { of: self, rows, next: [&[]; 2] }
    }

    /// Blocks of a row.
    pub(super) fn blocks(&self) -> usize {
        self.cols / SUB
    }

    /// Groups of eight blocks of a row in [`Layout::Lanes`].
    pub(super) fn groups(&self) -> usize {
        self.blocks().div_ceil(8)
    }

    /// That `data` is as long as the shape says.
    pub(super) fn check(&self) -> Result<()> {
        let units = match self.layout {
            Layout::Lanes => self.rows.checked_mul(self.groups()),
            Layout::DownTiles => self.rows.div_ceil(8 * LANES).checked_mul(self.blocks()),
        };
        let unit = match self.layout {
            Layout::Lanes => 128 + 16,
            Layout::DownTiles => DOWN_BLOCK,
        };
        let bytes = units.and_then(|n| n.checked_mul(unit));
        if bytes != Some(self.data.len()) || !self.cols.is_multiple_of(SUB) {
            let shape = format_args!("{} × {}, {:?}", self.rows, self.cols, self.layout).to_string();
            return Err(misuse("gemm", format_args!("{} bytes of weights for {shape}", self.data.len())));
        }
        Ok(())
    }

    /// Codes of row `row`, as groups, and their scales; empty if there is no such row.
    pub(super) fn lanes_row(&self, row: usize) -> Row<'_> {
        let groups = self.groups();
        let (codes, scales) = self.data.split_at_checked(self.rows * groups * 128).unwrap_or((&[], &[]));
        let range = row * groups..(row + 1) * groups;
        (
            codes.as_chunks().0.get(range.clone()).unwrap_or(&[]),
            scales.as_chunks().0.get(range).unwrap_or(&[]),
        )
    }

    /// The bytes that are unpacked together with row `row`: codes and scales, or both in one. Empty beyond the end.
    pub(crate) fn unit(&self, row: usize) -> [&'a [u8]; 2] {
        match self.layout {
            Layout::Lanes => {
                let (groups, end) = (self.groups(), self.rows.min(row + LANES));
                let (codes, scales) =
                    self.data.split_at_checked(self.rows * groups * 128).unwrap_or((&[], &[]));
                let part = |bytes: usize| row * groups * bytes..end * groups * bytes;
                [codes.get(part(128)).unwrap_or(&[]), scales.get(part(16)).unwrap_or(&[])]
            }
            Layout::DownTiles => {
                let bytes = self.blocks() * DOWN_BLOCK;
                let tile = row / (8 * LANES);
                [self.data.get(tile * bytes..(tile + 1) * bytes).unwrap_or(&[]), &[]]
            }
        }
    }

    /// Blocks of a tile of 128 rows, each as its scales and the codes of its 32 columns.
    pub(super) fn down_tile(&self, tile: usize) -> impl Iterator<Item = (&[[u8; 32]], &[[u8; 64]])> {
        let blocks = self.blocks();
        let all: &[[u8; DOWN_BLOCK]] = self.data.as_chunks().0;
        let tile = all.get(tile * blocks..(tile + 1) * blocks).unwrap_or(&[]);
        tile.iter().map(|block| {
            let (scales, codes) = block.split_at(256);
            (scales.as_chunks().0, codes.as_chunks().0)
        })
    }
}

/// A block of 32 columns of sixteen rows.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct PanelBlock {
    /// Byte `4 r + e` of entry `k` is the code of column `4 k + e` of row `r`: 0..16, or, for instructions
    /// that take signed weights, -8..8 in two's complement.
    pub(super) codes: [[u8; 64]; 8],
    /// One per row.
    pub(super) scale: [f32; LANES],
}

const _: () = assert!(size_of::<PanelBlock>() == 576);

impl PanelBlock {
    pub(super) const ZERO: PanelBlock = PanelBlock { codes: [[0; 64]; 8], scale: [0.0; LANES] };
}

/// Reference for `unpack_lanes`. `BIAS` is subtracted from the codes.
pub(super) fn unpack_lanes<const BIAS: u8>(w: &PanelSource<'_>, row: usize, panel: &mut [PanelBlock]) {
    let blocks = w.blocks();
    let starts = residue_starts(blocks);
    for r in 0..LANES {
        let (codes, scales) = w.lanes_row(row + r);
        for b in 0..blocks {
            let (g, i) = (b / 8, b % 8);
            let Some(out) = panel.get_mut(starts[i] + g) else { continue };
            // A panel may reach beyond the last row. What it holds there is not used, but has to be numbers.
            let (codes, scales) =
                (codes.get(g).unwrap_or(&[0; 128]), scales.get(g).unwrap_or(&[0; 16]).as_chunks().0);
            out.scale[r] = f16(scales[i]);
            for k in 0..4 {
                for e in 0..4 {
                    let byte = codes[32 * k + 4 * i + e];
                    out.codes[k][4 * r + e] = (byte & 15).wrapping_sub(BIAS);
                    out.codes[4 + k][4 * r + e] = (byte >> 4).wrapping_sub(BIAS);
                }
            }
        }
    }
}

/// Reference for `unpack_down`.
pub(super) fn unpack_down<const BIAS: u8>(w: &PanelSource<'_>, tile: usize, panels: &mut [PanelBlock]) {
    let blocks = w.blocks();
    let starts = residue_starts(blocks);
    for (b, (scales, codes)) in w.down_tile(tile).enumerate() {
        for (p, scales) in scales.iter().enumerate() {
            let Some(out) = panels.get_mut(p * blocks + starts[b % 8] + b / 8) else { continue };
            for (scale, bytes) in out.scale.iter_mut().zip(scales.as_chunks().0) {
                *scale = f16(*bytes);
            }
            let (m, shift) = (p % 4, if p < 4 { 0 } else { 4 });
            for (n, codes) in codes.iter().enumerate() {
                for r in 0..LANES {
                    let code = (codes[16 * (r / 4) + 4 * m + r % 4] >> shift) & 15;
                    out.codes[n / 4][4 * r + n % 4] = code.wrapping_sub(BIAS);
                }
            }
        }
    }
}
