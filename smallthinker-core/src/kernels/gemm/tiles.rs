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

/// The 8-bit side of one or more batches of vectors, in tiles of up to sixteen, with a reusable buffer that only
/// grows.
#[derive(Debug, Default)]
pub struct ActTiles {
    cols: usize,
    batches: Vec<Shape>,
    /// Tile by tile, the blocks in the order of panels.
    blocks: Vec<TokenBlock>,
}

/// How a batch is cut into tiles. All have nearly the same number of vectors, as a tile costs almost the same however
/// full it is.
#[derive(Debug, Clone, Copy, Default)]
struct Shape {
    tokens: usize,
    /// The batch's first tile among all.
    first: usize,
    tiles: usize,
    /// Vectors of the first `full` tiles. The others have one less.
    per_tile: usize,
    full: usize,
}

impl Shape {
    fn new(tokens: usize, first: usize) -> Shape {
        let tiles = tokens.div_ceil(LANES);
        let per_tile = tokens.div_ceil(tiles.max(1));
        Shape { tokens, first, tiles, per_tile, full: tokens - tiles * per_tile.saturating_sub(1) }
    }

    fn size(&self, tile: usize) -> usize {
        if tile < self.full { self.per_tile } else { self.per_tile.saturating_sub(1) }
    }

    fn range(&self, tile: usize) -> Range<usize> {
        let first = tile * self.per_tile - tile.saturating_sub(self.full);
        first..first + self.size(tile)
    }
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

    /// Takes over some vectors of `from`, in the order of `tokens`, as the only batch.
    ///
    /// Errors: [`Error::Internal`](crate::Error::Internal) if `from` has no 8-bit side or not all of the
    /// vectors.
    pub fn set(&mut self, from: &Acts, mut tokens: impl ExactSizeIterator<Item = usize>) -> Result<()> {
        let width = self.prepare([tokens.len()], from.cols());
        let mut filled = Ok(());
        for ((_, range), out) in self.tiles().into_iter().zip(self.blocks.chunks_mut(width.max(1))) {
            for place in 0..range.len() {
                let row = tokens.next().map_or(ActRow::EMPTY, |token| from.row(token));
                filled = filled.and(fill_place(out, place, row));
            }
        }
        if filled.is_err() {
            self.prepare([], self.cols);
        }
        filled
    }

    /// Makes room for batches of so many vectors and returns the blocks of each tile. Every place of every tile must
    /// be filled then.
    pub(crate) fn prepare(&mut self, batches: impl IntoIterator<Item = usize>, cols: usize) -> usize {
        let (mut tiles, blocks) = (0, cols / SUB);
        self.cols = cols;
        self.batches.clear();
        for tokens in batches {
            let shape = Shape::new(tokens, tiles);
            tiles += shape.tiles;
            self.batches.push(shape);
        }
        self.blocks.resize(tiles * blocks, TokenBlock::ZERO);
        blocks
    }

    /// The blocks, tile by tile.
    pub(crate) fn blocks_mut(&mut self) -> &mut [TokenBlock] {
        &mut self.blocks
    }

    /// The batch of each tile, and which of its vectors the tile has.
    pub(crate) fn tiles(&self) -> Vec<(usize, Range<usize>)> {
        let batches = self.batches.iter().enumerate();
        batches.flat_map(|(i, b)| (0..b.tiles).map(move |tile| (i, b.range(tile)))).collect()
    }

    /// Which tiles each batch has.
    pub(crate) fn batches(&self) -> Vec<Range<usize>> {
        self.batches.iter().map(|b| b.first..b.first + b.tiles).collect()
    }

    /// A batch by its number; no vectors if there is none.
    pub fn batch(&self, number: usize) -> TileBatch<'_> {
        let shape = self.batches.get(number).copied().unwrap_or_default();
        let blocks = self.cols / SUB;
        let range = shape.first * blocks..(shape.first + shape.tiles) * blocks;
        TileBatch { shape, cols: self.cols, blocks: self.blocks.get(range).unwrap_or(&[]) }
    }

    /// Bytes that a vector of `cols` elements takes in a full tile.
    pub(crate) fn bytes_per_vector(cols: usize) -> usize {
        Self::bytes_per_tile(cols) / LANES
    }

    /// Bytes that a tile of vectors of `cols` elements takes.
    pub(crate) fn bytes_per_tile(cols: usize) -> usize {
        cols.div_ceil(SUB) * size_of::<TokenBlock>()
    }
}

/// A batch of vectors in tiles.
#[derive(Debug, Clone, Copy)]
pub struct TileBatch<'a> {
    shape: Shape,
    cols: usize,
    blocks: &'a [TokenBlock],
}

impl<'a> TileBatch<'a> {
    /// Number of vectors.
    pub fn tokens(&self) -> usize {
        self.shape.tokens
    }

    /// Elements of each vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All tiles, at most `most` at a time, as runs of one size.
    pub(super) fn passes(self, most: usize) -> impl Iterator<Item = [Run<'a>; 2]> {
        (0..self.shape.tiles).step_by(most).map(move |first| {
            let end = self.shape.tiles.min(first + most);
            let split = self.shape.full.clamp(first, end);
            [self.run(first, split), self.run(split, end)]
        })
    }

    fn run(&self, first: usize, end: usize) -> Run<'a> {
        let blocks = self.cols / SUB;
        let blocks = self.blocks.get(first * blocks..end * blocks).unwrap_or(&[]);
        Run { blocks, per_tile: self.shape.size(first).max(1), first_token: self.shape.range(first).start }
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
