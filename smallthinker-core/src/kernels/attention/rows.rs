//! Query rows and what they have seen so far: the online softmax around the kernels.

use std::ops::Range;

use super::calls::{Side, Tile, fit};
use super::{BLOCK, Functions, LANES, Line, Lines, SUMS, key_lines, scalar};
use crate::Result;
use crate::kernels::{Kernels, misuse};

/// Queries of one kv head, each with the positions that it sees, which meet that head's keys and values block
/// by block.
///
/// Blocks start at multiples of [`BLOCK`], so that the order of additions depends on positions alone, not on
/// how a text was cut into chunks or shared among threads.
pub struct QueryRows {
    functions: &'static Functions,
    head_dim: usize,
    /// `head_dim` in whole lines.
    width: usize,
    visible: Vec<Range<usize>>,
    /// The queries, scaled: of each tile of rows `[head_dim][rows]`.
    q: Vec<f32>,
    /// Per row: weighted values since the last `end_span`, their greatest score, and the sums of their weights.
    out: Vec<f32>,
    max: Vec<f32>,
    sums: Vec<[f32; SUMS]>,
    /// Scores, then weights, of one tile.
    scores: Vec<[f32; BLOCK]>,
    /// Keys and values of a block in single precision.
    wide: Vec<Line<f32>>,
}

/// From so many tiles on, a block is widened once for all of them.
const WIDE_TILES: usize = 3;

impl QueryRows {
    /// Takes queries of `head_dim` elements and the positions that each sees.
    ///
    /// Errors: [`Error::Internal`](crate::Error::Internal) if a query has another length, or if there is none.
    pub fn new<'q>(
        kernels: &Kernels,
        head_dim: usize,
        queries: impl ExactSizeIterator<Item = (&'q [f32], Range<usize>)>,
    ) -> Result<QueryRows> {
        let n = queries.len();
        if n == 0 || head_dim == 0 {
            return Err(misuse("attention", format_args!("{n} queries of {head_dim} elements")));
        }
        let width = head_dim.next_multiple_of(LANES);
        let mut rows = QueryRows {
            functions: kernels.attention,
            head_dim,
            width,
            visible: Vec::with_capacity(n),
            q: vec![0.0; n * head_dim],
            out: vec![0.0; n * width],
            max: vec![f32::NEG_INFINITY; n],
            sums: vec![[0.0; SUMS]; n],
            scores: vec![[0.0; BLOCK]; kernels.attention.rows.min(n)],
            wide: Vec::new(),
        };
        // Powers of two instead of e: one multiplication less per score.
        let scale = (std::f64::consts::LOG2_E / (head_dim as f64).sqrt()) as f32;
        for (i, (q, visible)) in queries.enumerate() {
            if q.len() != head_dim {
                return Err(misuse("attention", format_args!("a query of {} elements", q.len())));
            }
            let tile = tile_of(i, n, rows.functions.rows);
            let place = &mut rows.q[tile.start * head_dim..tile.end * head_dim];
            let place = place.chunks_exact_mut(tile.len()).map(|dim| &mut dim[i - tile.start]);
            place.zip(q).for_each(|(place, q)| *place = q * scale);
            rows.visible.push(visible);
        }
        Ok(rows)
    }

    /// Floats of a row of `end_span`.
    pub const fn total_len(head_dim: usize) -> usize {
        head_dim.next_multiple_of(LANES) + 2
    }

    /// Attends to the positions `first..first + BLOCK`, as far as the rows see them. Blocks must come in
    /// ascending order.
    ///
    /// Errors: [`Error::Internal`](crate::Error::Internal) if the number of lines does not fit.
    pub fn add_block(&mut self, first: usize, keys: Lines<'_>, values: Lines<'_>) -> Result<()> {
        if !fit(self.head_dim, keys, values) {
            return Err(misuse("attention", format_args!("lines that are no block of {}", self.head_dim)));
        }
        let head_dim = self.head_dim;
        let [keys, values] = [keys, values].map(|lines| Side { lines, head_dim });
        let n = self.visible.len();
        let as_it_is = matches!(keys.lines, Lines::F32(_)) || n.div_ceil(self.functions.rows) < WIDE_TILES;
        match self.union(0..n, first) {
            Some(seen) if !as_it_is => {
                let mut wide = std::mem::take(&mut self.wide);
                self.functions.widen(keys, values, seen, &mut wide);
                let (keys, values) = wide.split_at(key_lines(head_dim));
                let [keys, values] = [keys, values].map(|lines| Side { lines: Lines::F32(lines), head_dim });
                self.add_tiles(first, keys, values);
                self.wide = wide;
            }
            Some(_) => self.add_tiles(first, keys, values),
            None => {}
        }
        Ok(())
    }

    fn add_tiles(&mut self, first: usize, keys: Side<'_>, values: Side<'_>) {
        let n = self.visible.len();
        let mut from = 0;
        while from < n {
            let tile = tile_of(from, n, self.functions.rows);
            from = tile.end;
            self.add_tile(tile, first, keys, values);
        }
    }

    /// What at least one of these rows sees of the block at `first`, relative to it.
    fn union(&self, rows: Range<usize>, first: usize) -> Option<Range<usize>> {
        let seen = rows.map(|row| self.within(row, first)).filter(|seen| !seen.is_empty());
        seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
    }

    /// What row `row` sees of the block at `first`, relative to it.
    fn within(&self, row: usize, first: usize) -> Range<usize> {
        let seen = &self.visible[row];
        seen.start.saturating_sub(first).min(BLOCK)..seen.end.saturating_sub(first).min(BLOCK)
    }

    fn add_tile(&mut self, tile: Range<usize>, first: usize, keys: Side<'_>, values: Side<'_>) {
        let Some(union) = self.union(tile.clone(), first) else { return };
        let q = &self.q[tile.start * self.head_dim..tile.end * self.head_dim];
        let rows = Tile { rows: tile.len(), q };
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
        let lines = whole_lines(&seen);
        let scores = &mut self.scores[at];
        scores[lines.start..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..lines.end].fill(f32::NEG_INFINITY);
        // SAFETY: the set exists, so the CPU has its instructions; whole lines are multiples of 32.
        let (max, shrink) =
            unsafe { (self.functions.soften)(&mut scores[lines], self.max[row], &mut self.sums[row]) };
        self.max[row] = max;
        if shrink != 1.0 {
            self.out[row * self.width..(row + 1) * self.width].iter_mut().for_each(|o| *o *= shrink);
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
        let rows = self.out.chunks_exact_mut(self.width).zip(&mut self.max).zip(&mut self.sums);
        for (((out, max), sums), total) in rows.zip(totals.chunks_exact_mut(self.width + 2)) {
            merge_parts(total, out, *max, reduce(sums));
            out.fill(0.0);
            *max = f32::NEG_INFINITY;
            sums.fill(0.0);
        }
    }
}

/// The tile that row `i` of `n` belongs to: as few as possible, of nearly the same length.
fn tile_of(i: usize, n: usize, most: usize) -> Range<usize> {
    let tiles = n.div_ceil(most);
    let (len, longer) = (n / tiles, n % tiles);
    let tile = if i < longer * (len + 1) { i / (len + 1) } else { longer + (i - longer * (len + 1)) / len };
    let start = tile * len + tile.min(longer);
    start..start + len + usize::from(tile < longer)
}

/// The positions of all lines that hold some of these.
fn whole_lines(positions: &Range<usize>) -> Range<usize> {
    positions.start / LANES * LANES..positions.end.next_multiple_of(LANES)
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
pub(crate) fn merge(total: &mut [f32], part: &[f32]) {
    if let [out @ .., max, sum] = part {
        merge_parts(total, out, *max, *sum);
    }
}

fn merge_parts(total: &mut [f32], part: &[f32], part_max: f32, part_sum: f32) {
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
    let (a, b) = (scalar::exp2(*max - common), scalar::exp2(part_max - common));
    out.iter_mut().zip(part).for_each(|(o, p)| *o = *o * a + *p * b);
    (*max, *sum) = (common, *sum * a + part_sum * b);
}

/// The result of a row: `total`, a row of [`QueryRows::end_span`], divided by its sum of weights.
pub(crate) fn finish(total: &[f32], out: &mut [f32]) {
    let sum = total.last().copied().unwrap_or(f32::NAN);
    let norm = 1.0 / sum;
    out.iter_mut().zip(total).for_each(|(o, t)| *o = t * norm);
}
