//! Query rows that meet blocks of 8-bit codes.

use std::ops::Range;

use super::codes::{self, SQUARES, Softened};
use super::rows::{QueryRows, tiles_of, unseen, whole_lines};
use super::{LANES, Square};

impl QueryRows {
    /// Brings the queries into tiles of codes.
    pub(super) fn arrange_codes(&mut self) {
        let (n, head_dim) = (self.max.len(), self.head_dim);
        self.codes.clear();
        for tile in tiles_of(n, self.functions.rows) {
            let rows = &self.scaled[tile.start * head_dim..tile.end * head_dim];
            self.codes.push_tile(&self.functions.codes, rows, head_dim);
        }
        self.gains.resize(self.scores.len(), 0.0);
        self.integers.resize(self.scores.len(), [[0; LANES / 2]; SQUARES]);
    }

    /// What [`add_block`](Self::add_block) does for a tile of rows.
    pub(super) fn add_coded_tile(
        &mut self,
        tile: Range<usize>,
        first: usize,
        keys: &[Square],
        values: &[Square],
    ) {
        let Some(union) = self.union(tile.clone(), first) else { return };
        let (parts, functions) = (self.head_dim.div_ceil(LANES), &self.functions.codes);
        let lines = whole_lines(&union);
        let q = self.codes.tile(&tile, self.head_dim);
        let keys = &keys[lines.start / LANES * parts..lines.end / LANES * parts];
        let out = &mut self.scores[..];
        let score = codes::Score { rows: tile.len(), q, parts, keys, first: lines.start, out };
        // SAFETY: the set exists, so the CPU has its instructions; the slices are of the promised lengths.
        unsafe { (functions.score)(score) };
        // Rows that see the same, as those of one token do, together.
        let mut from = tile.start;
        while from < tile.end {
            let seen = self.within(from, first);
            let same = (from..tile.end).take_while(|row| self.within(*row, first) == seen).count();
            let rows = from..from + same;
            from = rows.end;
            if !seen.is_empty() {
                let at = rows.start - tile.start;
                rows.clone().for_each(|row| self.soften_codes(row, row - tile.start, &seen));
                let out = &mut self.out[rows.start * self.width..rows.end * self.width];
                for (column, values) in values.as_chunks::<SQUARES>().0.iter().enumerate() {
                    let mix = codes::Mix {
                        rows: rows.len(),
                        weights: &self.scores[at..],
                        integers: &mut self.integers,
                        gains: &self.gains[at..],
                        positions: seen.clone(),
                        values,
                        width: self.width,
                        out: &mut out[column * LANES..],
                    };
                    // SAFETY: as above.
                    unsafe { (functions.mix)(mix) };
                }
            }
        }
    }

    /// Scores of `row` to weights relative to the greatest of this block; `at` is its place in the tile.
    fn soften_codes(&mut self, row: usize, at: usize, seen: &Range<usize>) {
        let scores = unseen(&mut self.scores[at], seen);
        // SAFETY: the set exists, so the CPU has its instructions; whole lines are multiples of 32.
        let softened = unsafe { (self.functions.codes.soften)(scores, self.max[row], &mut self.sums[row]) };
        let Softened { max, shrink, gain } = softened;
        (self.max[row], self.gains[at]) = (max, gain);
        self.shrink(row, shrink);
    }
}
