//! Query rows that meet blocks of codes.

use std::ops::Range;

use super::codes::{self, Course, SQUARES, Softened};
use super::rows::{Form, QueryRows, tiles_of, unseen, whole_lines};
use super::{LANES, Square, Square4, squares};
use crate::Result;

/// How far ahead of the arithmetic codes are requested from memory, in bytes; found by trial.
const AHEAD: usize = 16384;

/// Positions whose keys are unpacked at a time, so that they are still in the first-level cache when they are computed with; a multiple
/// of 32, found by trial.
const UNPACKED_KEYS: usize = 64;

/// The squares of keys or values of a block.
#[derive(Clone, Copy)]
pub(super) enum Squares<'a> {
    Eight(&'a [Square]),
    Four(&'a [Square4]),
    /// What was of 4 bits.
    Unpacked(&'a [Square]),
}

impl Squares<'_> {
    /// Those with the numbers `all` in 8 bits, of which only those numbered `needed` have to be right. If they must be unpacked, that is
    /// done in `room`.
    fn get<'s>(
        &'s self,
        functions: &codes::Functions,
        all: Range<usize>,
        needed: Range<usize>,
        room: &'s mut Vec<Square>,
    ) -> &'s [Square] {
        match self {
            Squares::Eight(squares) | Squares::Unpacked(squares) => &squares[all],
            Squares::Four(squares) => {
                room.resize(room.len().max(all.len()), Square::EMPTY);
                let place = needed.start - all.start..needed.end - all.start;
                // SAFETY: the set exists, so the CPU has its instructions.
                unsafe { (functions.unpack)(&squares[needed], &mut room[place]) };
                &room[..all.len()]
            }
        }
    }
}

/// A block of keys and values.
#[derive(Clone, Copy)]
struct Block<'a> {
    keys: Squares<'a>,
    values: Squares<'a>,
    course: &'a Course,
    /// How many squares ahead of the arithmetic others are requested.
    distance: usize,
}

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

    /// What [`add_block`](Self::add_block) does.
    pub(super) fn add_coded(
        &mut self,
        first: usize,
        keys: Squares<'_>,
        values: Squares<'_>,
        course: &Course,
    ) -> Result<()> {
        self.arrange(Form::Codes)?;
        let (n, most) = (self.max.len(), self.functions.rows);
        let Some(union) = self.union(0..n, first) else { return Ok(()) };
        let seen = self.within(0, first);
        let in_one_go = n <= most && (1..n).all(|row| self.within(row, first) == seen);
        if in_one_go || matches!(keys, Squares::Eight(_)) {
            let block = Block { keys, values, course, distance: course.distance(AHEAD) };
            tiles_of(n, most).for_each(|tile| self.add_coded_tile(tile, first, block));
            return Ok(());
        }
        // Once for all tiles, and for rows that see different positions, which take values one after the other.
        let mut unpacked = std::mem::take(&mut self.unpacked);
        let [of_keys, of_values] = &mut unpacked;
        let (all, parts, functions) =
            (squares(self.head_dim), self.head_dim.div_ceil(LANES), &self.functions.codes);
        let groups = groups(&union);
        let keys = keys.get(functions, 0..all, groups.start * parts..groups.end * parts, of_keys);
        for column in (0..all).step_by(SQUARES) {
            values.get(functions, 0..all, column + groups.start..column + groups.end, of_values);
        }
        let [keys, values] = [keys, &of_values[..]].map(Squares::Unpacked);
        for tile in tiles_of(n, most) {
            // These are in the caches already. The next block is not: once it is requested.
            let distance = if tile.start == 0 { course.block() } else { course.both() };
            self.add_coded_tile(tile, first, Block { keys, values, course, distance });
        }
        self.unpacked = unpacked;
        Ok(())
    }

    /// What it does for a tile of rows.
    fn add_coded_tile(&mut self, tile: Range<usize>, first: usize, block: Block<'_>) {
        let Block { keys, values, course, distance } = block;
        let Some(union) = self.union(tile.clone(), first) else { return };
        let (parts, functions) = (self.head_dim.div_ceil(LANES), &self.functions.codes);
        let lines = whole_lines(&union);
        let q = self.codes.tile(&tile, self.head_dim);
        let step = if matches!(keys, Squares::Four(_)) { UNPACKED_KEYS } else { lines.len() };
        for at in lines.clone().step_by(step) {
            let groups = groups(&(at..lines.end.min(at + step)));
            let some = groups.start * parts..groups.end * parts;
            let ahead = course.ahead(some.start, distance);
            let keys = keys.get(functions, some.clone(), some, &mut self.room);
            let out = &mut self.scores[..];
            let score = codes::Score { rows: tile.len(), q, parts, keys, first: at, ahead, out };
            // SAFETY: the set exists, so the CPU has its instructions; the slices are of the promised lengths.
            unsafe { (functions.score)(score) };
        }
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
                let groups = groups(&seen);
                for column in 0..parts {
                    let all = column * SQUARES..(column + 1) * SQUARES;
                    let needed = all.start + groups.start..all.start + groups.end;
                    let ahead = course.ahead(course.keys() + all.start, distance);
                    let values = values.get(functions, all, needed, &mut self.room);
                    let Some(values) = values.first_chunk() else { return };
                    let mix = codes::Mix {
                        rows: rows.len(),
                        weights: &self.scores[at..],
                        integers: &mut self.integers,
                        gains: &self.gains[at..],
                        positions: seen.clone(),
                        values,
                        ahead,
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

/// The groups of 32 positions that hold some of these: squares of a column.
fn groups(positions: &Range<usize>) -> Range<usize> {
    positions.start / LANES..positions.end.div_ceil(LANES)
}
