//! Query rows that meet blocks of codes.

use std::ops::Range;

use super::codes::{self, Ahead, Course, Functions, SQUARES, Softened, short};
use super::rows::{Form, QueryRows, tiles_of, unseen, whole_lines};
use super::{Coded, LANES, Run, Square, Square4};
use crate::Result;

/// How far ahead of the arithmetic codes are requested from memory, in bytes; found by trial.
const AHEAD: usize = 16384;

/// Codes of one size, as attention meets them.
pub(super) trait Attended: Coded {
    fn score(functions: &Functions) -> unsafe fn(codes::Score<'_, Self>);
    /// What is done to the weights of rows that see the same positions before all columns are mixed; `at` are their places in the
    /// tile.
    fn stretch(rows: &mut QueryRows, at: Range<usize>, positions: &Range<usize>, values: &[Self]);
    fn mix(rows: &mut QueryRows, column: Column<'_, Self>);
}

/// 32 dimensions of the values of a block, for rows that see the same positions.
pub(super) struct Column<'a, S> {
    rows: Range<usize>,
    /// The place of the first row in its tile.
    at: usize,
    positions: &'a Range<usize>,
    /// The first dimension.
    dim: usize,
    values: &'a [S; SQUARES],
    ahead: Ahead<'a>,
}

impl Attended for Square {
    fn score(functions: &Functions) -> unsafe fn(codes::Score<'_, Square>) {
        functions.score
    }

    fn stretch(_rows: &mut QueryRows, _at: Range<usize>, _positions: &Range<usize>, _values: &[Square]) {}

    fn mix(rows: &mut QueryRows, column: Column<'_, Square>) {
        let mix = codes::Mix {
            rows: column.rows.len(),
            weights: &rows.scores[column.at..],
            integers: &mut rows.integers,
            gains: &rows.gains[column.at..],
            positions: column.positions.clone(),
            values: column.values,
            ahead: column.ahead,
            width: rows.width,
            out: &mut rows.out[column.rows.start * rows.width + column.dim..],
        };
        // SAFETY: the set exists, so the CPU has its instructions; the slices are of the promised lengths.
        unsafe { (rows.functions.codes.mix)(mix) };
    }
}

impl Attended for Square4 {
    fn score(functions: &Functions) -> unsafe fn(codes::Score<'_, Square4>) {
        functions.score4
    }

    fn stretch(rows: &mut QueryRows, at: Range<usize>, positions: &Range<usize>, values: &[Square4]) {
        let stretch = short::Stretch {
            rows: at.len(),
            weights: &mut rows.scores[at.clone()],
            peaks: &mut rows.peaks[at],
            positions: positions.clone(),
            values,
            inverses: &mut rows.inverses,
        };
        // SAFETY: the set exists, so the CPU has its instructions; the slices are of the promised lengths.
        unsafe { (rows.functions.codes.stretch)(stretch) };
    }

    fn mix(rows: &mut QueryRows, column: Column<'_, Square4>) {
        let mix = short::Mix {
            rows: column.rows.len(),
            weights: &rows.scores[column.at..],
            peaks: &rows.peaks[column.at..],
            inverses: &rows.inverses,
            integers: &mut rows.integers,
            gains: &rows.gains[column.at..],
            positions: column.positions.clone(),
            values: column.values,
            ahead: column.ahead,
            width: rows.width,
            out: &mut rows.out[column.rows.start * rows.width + column.dim..],
        };
        // SAFETY: as above.
        unsafe { (rows.functions.codes.mix4)(mix) };
    }
}

impl QueryRows {
    /// Brings the queries into tiles of codes. `offset` is as [`Coded::OFFSET`].
    pub(super) fn arrange_codes(&mut self, offset: i32) {
        let (n, head_dim) = (self.max.len(), self.head_dim);
        self.codes.clear();
        for tile in tiles_of(n, self.functions.rows) {
            let rows = &self.scaled[tile.start * head_dim..tile.end * head_dim];
            self.codes.push_tile(&self.functions.codes, rows, head_dim, offset);
        }
        self.gains.resize(self.scores.len(), 0.0);
        self.integers.resize(self.scores.len(), [[0; LANES / 2]; SQUARES]);
        self.peaks.resize(self.scores.len(), [0.0; SQUARES]);
    }

    /// What [`add_block`](Self::add_block) does; `next` is the keys and values of the block after this.
    pub(super) fn add_coded<S: Attended>(
        &mut self,
        first: usize,
        keys: &[S],
        values: &[S],
        next: [Run; 2],
    ) -> Result<()> {
        self.arrange(Form::Codes { offset: S::OFFSET })?;
        let course = Course::new(keys, values, next);
        for tile in tiles_of(self.max.len(), self.functions.rows) {
            self.add_coded_tile(tile, first, [keys, values], &course);
        }
        Ok(())
    }

    /// What it does for a tile of rows.
    fn add_coded_tile<S: Attended>(
        &mut self,
        tile: Range<usize>,
        first: usize,
        [keys, values]: [&[S]; 2],
        course: &Course,
    ) {
        let Some(union) = self.union(tile.clone(), first) else { return };
        let distance = course.distance(AHEAD);
        let (parts, functions) = (self.head_dim.div_ceil(LANES), &self.functions.codes);
        let groups = groups(&union);
        let some = groups.start * parts..groups.end * parts;
        let score = codes::Score {
            rows: tile.len(),
            q: self.codes.tile(&tile, self.head_dim),
            parts,
            keys: &keys[some.clone()],
            first: groups.start * LANES,
            ahead: course.ahead(some.start, distance),
            out: &mut self.scores,
        };
        // SAFETY: the set exists, so the CPU has its instructions; the slices are of the promised lengths.
        unsafe { S::score(functions)(score) };
        // Rows that see the same, as those of one token do, together.
        let mut from = tile.start;
        while from < tile.end {
            let seen = self.within(from, first);
            let same = (from..tile.end).take_while(|row| self.within(*row, first) == seen).count();
            let rows = from..from + same;
            from = rows.end;
            if seen.is_empty() {
                continue;
            }
            let at = rows.start - tile.start;
            rows.clone().for_each(|row| self.soften_codes(row, row - tile.start, &seen));
            S::stretch(self, at..at + same, &seen, values);
            for (column, values) in values.as_chunks().0.iter().enumerate() {
                let ahead = course.ahead(course.keys() + column * SQUARES, distance);
                let (rows, dim) = (rows.clone(), column * LANES);
                S::mix(self, Column { rows, at, positions: &seen, dim, values, ahead });
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
    let lines = whole_lines(positions);
    lines.start / LANES..lines.end / LANES
}
