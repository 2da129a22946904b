//! Activations arranged for the product with panels.

use super::{LANES, misuse, residue_starts};
use crate::error::Result;
use crate::kernels::Acts;
use crate::tensor::block::SUB;

/// A block of 32 columns of up to sixteen vectors.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct TokenBlock {
    pub(super) q: [[i8; SUB]; LANES],
    pub(super) scale: [f32; LANES],
    /// What the zero point 8 of unsigned codes adds to a sum, negated: -8 · Σ q.
    pub(super) offset: [i32; LANES],
}

const _: () = assert!(size_of::<TokenBlock>() == 640);

impl TokenBlock {
    pub(super) const ZERO: TokenBlock =
        TokenBlock { q: [[0; SUB]; LANES], scale: [0.0; LANES], offset: [0; LANES] };
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
    pub fn set(&mut self, from: &Acts, tokens: impl ExactSizeIterator<Item = usize>) -> Result<()> {
        // No tiles until all of them are there.
        (self.tokens, self.tiles, self.cols) = (0, 0, from.cols());
        let (count, blocks) = (tokens.len(), self.cols / SUB);
        if count == 0 {
            return Ok(());
        }
        if !from.is_quantized() {
            return Err(misuse("gemm", "activations are not quantized"));
        }
        let tiles = count.div_ceil(LANES);
        self.per_tile = count.div_ceil(tiles);
        self.full = count - tiles * (self.per_tile - 1);
        if self.blocks.len() < tiles * blocks {
            self.blocks.resize(tiles * blocks, TokenBlock::ZERO);
        }
        let starts = residue_starts(blocks);
        let (mut tile, mut place, mut done) = (0, 0, 0);
        for token in tokens {
            let row = from.row(token);
            if place == self.size(tile) {
                (tile, place) = (tile + 1, 0);
            }
            let out = self.blocks.get_mut(tile * blocks..(tile + 1) * blocks);
            let (Some(out), false) = (out, row.groups.is_empty()) else {
                return Err(misuse("gemm", format_args!("token {token} of {}", from.tokens())));
            };
            for (g, group) in row.groups.iter().enumerate() {
                let (q, sums) = (group.q.as_chunks::<SUB>().0, group.sums.as_chunks::<2>().0);
                for (i, ((q, sums), scale)) in q.iter().zip(sums).zip(group.scale).enumerate() {
                    if 8 * g + i >= blocks {
                        break;
                    }
                    let Some(out) = out.get_mut(starts[i] + g) else { continue };
                    out.q[place] = *q;
                    out.scale[place] = scale;
                    out.offset[place] = -8 * (i32::from(sums[0]) + i32::from(sums[1]));
                }
            }
            (place, done) = (place + 1, done + 1);
        }
        if done != count {
            return Err(misuse("gemm", format_args!("{done} tokens of {count}")));
        }
        (self.tokens, self.tiles) = (count, tiles);
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
