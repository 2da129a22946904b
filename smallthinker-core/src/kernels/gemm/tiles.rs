//! Activations arranged for the product with panels.

use std::ops::Range;

use super::{LANES, misuse, residue_starts};
use crate::error::Result;
use crate::kernels::{ActBlock, ActRow, Acts};
use crate::tensor::block::SUB;

/// A block of 32 columns of up to sixteen vectors.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct TokenBlock {
    pub(super) q: [[i8; SUB]; LANES],
    pub(super) scale: [f32; LANES],
    /// What the zero point 8 of unsigned codes adds to a sum, negated: -8 · Σ q.
    pub(super) offset: [i32; LANES],
}

const _: () = assert!(size_of::<TokenBlock>() == 640);

impl TokenBlock {
    pub(super) const ZERO: TokenBlock =
        TokenBlock { q: [[0; SUB]; LANES], scale: [0.0; LANES], offset: [0; LANES] };

    /// Takes over a block of the vector in place `place`.
    #[inline]
    pub(crate) fn put(&mut self, place: usize, block: &ActBlock<'_>) {
        let place = place % LANES;
        self.q[place] = *block.q;
        self.scale[place] = block.scale;
        self.offset[place] = -8 * (i32::from(block.sums[0]) + i32::from(block.sums[1]));
    }
}

/// The 8-bit side of some vectors, in tiles of up to sixteen, with a reusable buffer that only grows.
///
/// All tiles have nearly the same number of vectors, as a tile costs almost the same however full it is.
#[derive(Debug, Default)]
pub struct ActTiles {
    tokens: usize,
    cols: usize,
    tiles: usize,
    /// Vectors of the first `full` tiles. The others have one less.
    per_tile: usize,
    full: usize,
    /// Tile by tile, the blocks in the order of panels.
    blocks: Vec<TokenBlock>,
}

/// Consecutive tiles with the same number of vectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) blocks: &'a [TokenBlock],
    pub(super) per_tile: usize,
    pub(super) first_token: usize,
}

impl ActTiles {
    /// No vectors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over some vectors of `from`, in the order of `tokens`.
    ///
    /// Errors: [`Error::Internal`](crate::Error::Internal) if `from` has no 8-bit side or not all of the
    /// vectors.
    pub fn set(&mut self, from: &Acts, mut tokens: impl ExactSizeIterator<Item = usize>) -> Result<()> {
        let width = self.prepare(tokens.len(), from.cols());
        let mut filled = Ok(());
        for (range, out) in self.ranges().into_iter().zip(self.blocks.chunks_mut(width.max(1))) {
            for place in 0..range.len() {
                let row = tokens.next().map_or(ActRow::EMPTY, |token| from.row(token));
                filled = filled.and(fill_place(out, place, row));
            }
        }
        if filled.is_err() {
            self.prepare(0, self.cols);
        }
        filled
    }

    /// Makes room for `tokens` vectors and returns the blocks of each tile. Every place of every tile must be filled
    /// then.
    pub(crate) fn prepare(&mut self, tokens: usize, cols: usize) -> usize {
        let (tiles, blocks) = (tokens.div_ceil(LANES), cols / SUB);
        (self.tokens, self.cols, self.tiles) = (tokens, cols, tiles);
        self.per_tile = tokens.div_ceil(tiles.max(1));
        self.full = tokens - tiles * self.per_tile.saturating_sub(1);
        self.blocks.resize(tiles * blocks, TokenBlock::ZERO);
        blocks
    }

    /// The blocks, tile by tile.
    pub(crate) fn blocks_mut(&mut self) -> &mut [TokenBlock] {
        &mut self.blocks
    }

    /// The vectors of each tile.
    pub(crate) fn ranges(&self) -> Vec<Range<usize>> {
        (0..self.tiles).map(|tile| self.range(tile)).collect()
    }

    fn range(&self, tile: usize) -> Range<usize> {
        let first = tile * self.per_tile - tile.saturating_sub(self.full);
        first..first + self.size(tile)
    }

    /// Bytes that a vector of `cols` elements takes.
    pub(crate) fn bytes_per_vector(cols: usize) -> usize {
        cols.div_ceil(SUB) * size_of::<TokenBlock>() / LANES
    }

    /// Number of vectors.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Elements of each vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    fn size(&self, tile: usize) -> usize {
        if tile < self.full { self.per_tile } else { self.per_tile - 1 }
    }

    /// All tiles, at most `most` at a time, as runs of one size.
    pub(super) fn passes(&self, most: usize) -> impl Iterator<Item = [Run<'_>; 2]> {
        (0..self.tiles).step_by(most).map(move |first| {
            let end = self.tiles.min(first + most);
            let split = self.full.clamp(first, end);
            [self.run(first, split), self.run(split, end)]
        })
    }

    fn run(&self, first: usize, end: usize) -> Run<'_> {
        let blocks = self.cols / SUB;
        let first_token = first * self.per_tile - first.saturating_sub(self.full);
        let blocks = self.blocks.get(first * blocks..end * blocks).unwrap_or(&[]);
        Run { blocks, per_tile: self.size(first).max(1), first_token }
    }
}

/// Puts the 8-bit side of a vector into place `place` of a tile's blocks.
pub(crate) fn fill_place(out: &mut [TokenBlock], place: usize, row: ActRow<'_>) -> Result<()> {
    if out.len() != row.block_count() {
        return Err(misuse("gemm", format_args!("{} 8-bit blocks for {}", row.block_count(), out.len())));
    }
    let starts = residue_starts(out.len());
    for b in 0..out.len() {
        if let (Some(out), Some(block)) = (out.get_mut(starts[b % 8] + b / 8), row.block(b)) {
            out.put(place, &block);
        }
    }
    Ok(())
}

/// Where in a tile the blocks are, by block number: the order of panels.
pub(crate) fn block_places(blocks: usize) -> Vec<usize> {
    let starts = residue_starts(blocks);
    (0..blocks).map(|b| starts[b % 8] + b / 8).collect()
}
