//! Query rows and what they have seen so far: the online softmax around the kernels.

use std::ops::Range;

use super::calls::{Side, Tile, fit};
use super::codes::short::Peaks;
use super::codes::{Integers, QueryCodes};
use super::{BLOCK, Functions, LANES, Line, Lines, Run, SUMS, key_lines};
use crate::Result;
use crate::kernels::{Kernels, misuse};

/// Queries of one kv head, each with the positions that it sees, which meet that head's keys and values block
/// by block.
///
/// Blocks start at multiples of [`BLOCK`], so that the order of additions depends on positions alone, not on
/// how a text was cut into chunks or shared among threads.
pub struct QueryRows {
    pub(super) functions: &'static Functions,
    pub(super) head_dim: usize,
    /// `head_dim` in whole lines.
    pub(super) width: usize,
    visible: Vec<Range<usize>>,
    /// The queries, scaled: `[rows][head_dim]`.
    pub(super) scaled: Vec<f32>,
    form: Form,
    /// The queries: of each tile of rows `[head_dim][rows]`.
    tiles: Vec<f32>,
    /// The queries, for keys in codes.
    pub(super) codes: QueryCodes,
    /// Per row: weighted values since the last `end_span`, their greatest score, and the sums of their weights.
    pub(super) out: Vec<f32>,
    pub(super) max: Vec<f32>,
    pub(super) sums: Vec<[f32; SUMS]>,
    /// Scores, then weights, of one tile.
    pub(super) scores: Vec<[f32; BLOCK]>,
    /// Of values in codes: what these weights, relative to the greatest of the block, count for.
    pub(super) gains: Vec<f32>,
    pub(super) integers: Vec<Integers>,
    /// Keys and values of a block in single precision.
    wide: Vec<Line<f32>>,
    /// Of values of 4 bits: the peaks of the rows of a tile, and the inverse of each position's greatest scale.
    pub(super) peaks: Vec<Peaks>,
    pub(super) inverses: [f32; BLOCK],
    /// Where the keys and the values lie that were announced; `add_block` takes it.
    next: [Run; 2],
}

/// What the blocks so far have asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Form {
    None,
    Tiles,
    /// With the keys' [`Coded::OFFSET`](super::Coded::OFFSET).
    Codes {
        offset: i32,
    },
}

/// From so many tiles on, a block is widened once for all of them.
const WIDE_TILES: usize = 3;

impl QueryRows {
    /// No queries yet, of `head_dim` elements.
    pub fn new(kernels: &Kernels, head_dim: usize) -> QueryRows {
        QueryRows {
            functions: kernels.attention,
            head_dim,
            width: head_dim.next_multiple_of(LANES),
            visible: Vec::new(),
            scaled: Vec::new(),
            form: Form::None,
            tiles: Vec::new(),
            codes: QueryCodes::default(),
            out: Vec::new(),
            max: Vec::new(),
            sums: Vec::new(),
            scores: Vec::new(),
            gains: Vec::new(),
            integers: Vec::new(),
            wide: Vec::new(),
            peaks: Vec::new(),
            inverses: [0.0; BLOCK],
            next: [(0, 0); 2],
        }
    }

    /// Begins with other queries and the positions that each sees. Memory is used again.
    ///
    /// Errors: [`Error::Internal`](crate::Error::Internal) if a query is not of `head_dim` elements, or if there is none.
    pub fn set<'q>(
        &mut self,
        queries: impl ExactSizeIterator<Item = (&'q [f32], Range<usize>)>,
    ) -> Result<()> {
        let (n, head_dim) = (queries.len(), self.head_dim);
        if n == 0 || head_dim == 0 {
            return Err(misuse("attention", format_args!("{n} queries of {head_dim} elements")));
        }
        // Powers of two instead of e: one multiplication less per score.
        let scale = (std::f64::consts::LOG2_E / (head_dim as f64).sqrt()) as f32;
        self.visible.clear();
        self.scaled.clear();
        for (q, visible) in queries {
            if q.len() != head_dim {
                return Err(misuse("attention", format_args!("a query of {} elements", q.len())));
            }
            self.scaled.extend(q.iter().map(|q| q * scale));
            self.visible.push(visible);
        }
        self.form = Form::None;
        self.out.resize(n * self.width, 0.0);
        self.max.resize(n, 0.0);
        self.sums.resize(n, [0.0; SUMS]);
        self.begin();
        let most = self.functions.rows.min(n);
        self.scores.resize(most, [0.0; BLOCK]);
        Ok(())
    }

    /// Nothing was seen.
    fn begin(&mut self) {
        self.out.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sums.fill([0.0; SUMS]);
    }

    /// Floats of a row of `end_span`.
    pub const fn total_len(head_dim: usize) -> usize {
        head_dim.next_multiple_of(LANES) + 2
    }

    /// Tells which block will come after the one that is added next: blocks may lie anywhere. Where the CPU does not find them early
    /// enough by itself, it is requested from memory meanwhile: of codes, and of half precision that is computed with as it lies
    /// there. Changes no result.
    pub fn announce(&mut self, keys: Lines<'_>, values: Lines<'_>) {
        self.next = [keys, values].map(|lines| lines.run());
    }

    /// Attends to the positions `first..first + BLOCK`, as far as the rows see them. Blocks must come in
    /// ascending order.
    ///
    /// Errors: [`Error::Internal`](crate::Error::Internal) if the number of lines does not fit, or if earlier blocks had codes of another size, or
    /// none.
    pub fn add_block(&mut self, first: usize, keys: Lines<'_>, values: Lines<'_>) -> Result<()> {
        if !fit(self.head_dim, keys, values) {
            return Err(misuse("attention", format_args!("lines that are no block of {}", self.head_dim)));
        }
        let head_dim = self.head_dim;
        let n = self.visible.len();
        let next = self.take_next(first + BLOCK);
        match (keys, values) {
            (Lines::Q8(keys), Lines::Q8(values)) => return self.add_coded(first, keys, values, next),
            (Lines::Q4(keys), Lines::Q4(values)) => return self.add_coded(first, keys, values, next),
            _ => {}
        }
        self.arrange(Form::Tiles)?;
        let [keys, values] = [keys, values].map(|lines| Side { lines, head_dim, next: next[0] });
        let as_it_is = matches!(keys.lines, Lines::F32(_)) || n.div_ceil(self.functions.rows) < WIDE_TILES;
        match self.union(0..n, first) {
            Some(seen) if !as_it_is => {
                let mut wide = std::mem::take(&mut self.wide);
                self.functions.widen(keys, values, seen, &mut wide);
                let (keys, values) = wide.split_at(key_lines(head_dim));
                let [keys, values] =
                    [keys, values].map(|lines| Side { lines: Lines::F32(lines), head_dim, next: (0, 0) });
                self.add_tiles(first, keys, values);
                self.wide = wide;
            }
            Some(_) => self.add_tiles(first, keys, values),
            None => {}
        }
        Ok(())
    }

    /// Brings the queries into tiles of single precision or of codes.
    pub(super) fn arrange(&mut self, form: Form) -> Result<()> {
        if self.form == form {
            return Ok(());
        }
        if self.form != Form::None {
            return Err(misuse("attention", "blocks of two kinds"));
        }
        self.form = form;
        if let Form::Codes { offset } = form {
            self.arrange_codes(offset);
            return Ok(());
        }
        self.tiles.clear();
        for tile in tiles_of(self.visible.len(), self.functions.rows) {
            let rows = &self.scaled[tile.start * self.head_dim..tile.end * self.head_dim];
            for d in 0..self.head_dim {
                self.tiles.extend(rows.chunks_exact(self.head_dim).map(|row| row[d]));
            }
        }
        Ok(())
    }

    fn add_tiles(&mut self, first: usize, keys: Side<'_>, values: Side<'_>) {
        let n = self.visible.len();
        for tile in tiles_of(n, self.functions.rows) {
            // Once is enough.
            let next = if tile.end == n { values.next } else { (0, 0) };
            self.add_tile(tile, first, keys, Side { next, ..values });
        }
    }

    /// What was announced, as far as it will be read: of keys in whole groups of positions, of values all or none.
    fn take_next(&mut self, first: usize) -> [Run; 2] {
        let [keys, values] = std::mem::take(&mut self.next);
        let end = self.union(0..self.visible.len(), first).map_or(0, |seen| seen.end);
        let groups = BLOCK / LANES;
        [(keys.0, keys.1 / groups * end.div_ceil(LANES)), if end == BLOCK { values } else { (0, 0) }]
    }

    /// What at least one of these rows sees of the block at `first`, relative to it.
    pub(super) fn union(&self, rows: Range<usize>, first: usize) -> Option<Range<usize>> {
        let seen = rows.map(|row| self.within(row, first)).filter(|seen| !seen.is_empty());
        seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
    }

    /// What row `row` sees of the block at `first`, relative to it.
    pub(super) fn within(&self, row: usize, first: usize) -> Range<usize> {
        let seen = &self.visible[row];
        seen.start.saturating_sub(first).min(BLOCK)..seen.end.saturating_sub(first).min(BLOCK)
    }

    fn add_tile(&mut self, tile: Range<usize>, first: usize, keys: Side<'_>, values: Side<'_>) {
        let Some(union) = self.union(tile.clone(), first) else { return };
        let q = &self.tiles[tile.start * self.head_dim..tile.end * self.head_dim];
        let rows = Tile { rows: tile.len(), q };
        let keys = Side { next: values.lines_at(union.start, union.len()), ..keys };
        self.functions.scores(rows, keys, whole_lines(&union), &mut self.scores);
        for row in tile.clone() {
            let seen = self.within(row, first);
            if !seen.is_empty() {
                self.soften(row, row - tile.start, seen);
            }
        }
        // All rows together where they see the same; then each row's positions before and behind that. A row must not
        // even multiply with zero what it does not see: that would let an infinite value through.
        let common = tile.clone().map(|row| self.within(row, first));
        let common = common.reduce(|a, b| a.start.max(b.start)..a.end.min(b.end)).unwrap_or(0..0);
        let common = if common.is_empty() { union.start..union.start } else { common };
        for row in tile.clone() {
            let seen = self.within(row, first);
            self.mix(row..row + 1, row - tile.start, seen.start..seen.end.min(common.start), values);
        }
        self.mix(tile.clone(), 0, common.clone(), values);
        for row in tile.clone() {
            let seen = self.within(row, first);
            self.mix(row..row + 1, row - tile.start, seen.start.max(common.end)..seen.end, values);
        }
    }

    /// Scores of `row` to weights; `at` is its place in the tile.
    fn soften(&mut self, row: usize, at: usize, seen: Range<usize>) {
        let scores = unseen(&mut self.scores[at], &seen);
        // SAFETY: the set exists, so the CPU has its instructions; whole lines are multiples of 32.
        let (max, shrink) = unsafe { (self.functions.soften)(scores, self.max[row], &mut self.sums[row]) };
        self.max[row] = max;
        self.shrink(row, shrink);
    }

    /// Makes what row `row` has seen so far count for less.
    pub(super) fn shrink(&mut self, row: usize, by: f32) {
        if by != 1.0 {
            self.out[row * self.width..(row + 1) * self.width].iter_mut().for_each(|o| *o *= by);
        }
    }

    /// Adds weighted values for `rows`; `at` is the place of the first in its tile.
    fn mix(&mut self, rows: Range<usize>, at: usize, positions: Range<usize>, values: Side<'_>) {
        let out = &mut self.out[rows.start * self.width..rows.end * self.width];
        self.functions.mix_values(rows.len(), &self.scores[at..], values, positions, out);
    }

    /// Adds what the rows have seen since the last call to `totals`, rows of [`total_len`](Self::total_len)
    /// that start as zeros, and begins anew. Spans end at fixed positions, as blocks do.
    pub fn end_span(&mut self, totals: &mut [f32]) {
        let rows = self.out.chunks_exact(self.width).zip(&self.max).zip(&self.sums);
        for (((out, max), sums), total) in rows.zip(totals.chunks_exact_mut(self.width + 2)) {
            // SAFETY: the set exists, so the CPU has its instructions.
            unsafe { (self.functions.merge)(total, out, *max, reduce(sums)) };
        }
        self.begin();
    }
}

/// Tiles of `n` rows, of at most `most`: as few as possible, of nearly the same length.
pub(super) fn tiles_of(n: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let tiles = n.div_ceil(most);
    (0..tiles).map(move |i| i * n / tiles..(i + 1) * n / tiles)
}

/// The positions of all lines that hold some of these.
pub(super) fn whole_lines(positions: &Range<usize>) -> Range<usize> {
    positions.start / LANES * LANES..positions.end.next_multiple_of(LANES)
}

/// The scores of all lines that hold some of the positions `seen`, with those of other positions as if they were
/// infinitely small.
pub(super) fn unseen<'s>(scores: &'s mut [f32; BLOCK], seen: &Range<usize>) -> &'s mut [f32] {
    let lines = whole_lines(seen);
    scores[lines.start..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..lines.end].fill(f32::NEG_INFINITY);
    &mut scores[lines]
}

fn reduce(sums: &[f32; SUMS]) -> f32 {
    let mut lanes = *sums;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// Adds a later part of a row to an earlier one; both are rows of [`QueryRows::end_span`].
pub(crate) fn merge(kernels: &Kernels, total: &mut [f32], part: &[f32]) {
    if let [out @ .., max, sum] = part {
        // SAFETY: the set exists, so the CPU has its instructions.
        unsafe { (kernels.attention.merge)(total, out, *max, *sum) };
    }
}

/// Adds to `total`, a row of [`QueryRows::end_span`], a part with this maximum and this sum of weights. To be compiled for
/// the instructions of a set.
#[inline(always)]
pub(super) fn merge_parts(
    total: &mut [f32],
    part: &[f32],
    part_max: f32,
    part_sum: f32,
    exp2: impl Fn(f32) -> f32,
) {
    let [out @ .., max, sum] = total else { return };
    // A part of which nothing was visible. One that was adds at least the weight 1 of its maximum, or NaN.
    if part_sum == 0.0 {
        return;
    }
    if *sum == 0.0 {
        out.copy_from_slice(part);
        (*max, *sum) = (part_max, part_sum);
        return;
    }
    let common = max.max(part_max);
    let (a, b) = (exp2(*max - common), exp2(part_max - common));
    out.iter_mut().zip(part).for_each(|(o, p)| *o = *o * a + *p * b);
    (*max, *sum) = (common, *sum * a + part_sum * b);
}

/// The result of a row: `total`, a row of [`QueryRows::end_span`], divided by its sum of weights.
pub(crate) fn finish(total: &[f32], out: &mut [f32]) {
    let sum = total.last().copied().unwrap_or(f32::NAN);
    let norm = 1.0 / sum;
    out.iter_mut().zip(total).for_each(|(o, t)| *o = t * norm);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows see 300 positions: of an announced second block 44, two groups of keys of 32.
    #[test]
    fn of_what_is_announced_what_will_be_seen_is_requested() {
        let (dim, query) = (64, [0.5; 64]);
        let lines = vec![Line([0u16; LANES]); key_lines(dim)];
        let (keys, values) = (Lines::F16(&lines), Lines::F16(&lines));
        let mut rows = QueryRows::new(Kernels::detect(), dim);
        for (end, want) in [(256, 0), (257, dim), (300, 2 * dim), (512, lines.len())] {
            rows.set([(&query[..], 0..end), (&query[..], 0..7)].into_iter()).unwrap();
            rows.announce(keys, values);
            let [(address, keys), (_, values)] = rows.take_next(BLOCK);
            assert_eq!((address, keys), (lines.as_ptr().addr(), want), "{end} positions");
            assert_eq!(values, if end == 512 { lines.len() } else { 0 }, "{end} positions");
            // Once.
            assert_eq!(rows.take_next(BLOCK), [(0, 0); 2]);
        }
    }
}
