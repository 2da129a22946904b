//! The functions of a set on lines of any element type.

use std::ops::Range;

use super::{BLOCK, Functions, LANES, Line, Lines, Mix, Run, Score, key_lines, squares, value_lines};

/// Lines that are widened at a time: they stay in the first-level cache.
type Buffer = [Line<f32>; LANES];
const EMPTY: Buffer = [Line([0.0; LANES]); LANES];

/// Whether these are the lines of one block.
pub(super) fn fit(head_dim: usize, keys: Lines<'_>, values: Lines<'_>) -> bool {
    let lines = (key_lines(head_dim), value_lines(head_dim));
    match (keys, values) {
        (Lines::F16(k), Lines::F16(v)) => (k.len(), v.len()) == lines,
        (Lines::F32(k), Lines::F32(v)) => (k.len(), v.len()) == lines,
        (Lines::Q8(k), Lines::Q8(v)) => (k.len(), v.len()) == (squares(head_dim), squares(head_dim)),
        (Lines::Q4(k), Lines::Q4(v)) => (k.len(), v.len()) == (squares(head_dim), squares(head_dim)),
        _ => false,
    }
}

/// The keys or the values of a block, known to [`fit`].
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) lines: Lines<'a>,
    pub(super) head_dim: usize,
    /// The lines that are read after it.
    pub(super) next: Run,
}

impl Side<'_> {
    /// The place of some of its lines.
    pub(super) fn lines_at(&self, first: usize, count: usize) -> Run {
        let bytes = match self.lines {
            Lines::F16(_) => size_of::<Line<u16>>(),
            _ => size_of::<Line<f32>>(),
        };
        (self.lines.run().0.wrapping_add(first * bytes), count)
    }
}

/// Query rows, at most `Functions::rows`, as `[head_dim][rows]`.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) rows: usize,
    pub(super) q: &'a [f32],
}

impl Functions {
    /// Scores of a tile with the keys of some positions, which are whole lines.
    pub(super) fn scores(
        &self,
        tile: Tile<'_>,
        keys: Side<'_>,
        positions: Range<usize>,
        out: &mut [[f32; BLOCK]],
    ) {
        let (Tile { rows, q }, dims, first) = (tile, keys.head_dim, positions.start);
        let next = keys.next;
        let groups = positions.start / LANES..positions.end / LANES;
        let lines = groups.start * dims..groups.end * dims;
        out.iter_mut().take(rows).for_each(|row| row[positions.clone()].fill(0.0));
        match (keys.lines, &self.fused) {
            (Lines::F32(keys), _) => {
                self.score(Score { rows, q, dims, keys: &keys[lines], first, next, out });
            }
            (Lines::F16(keys), Some(fused)) => {
                let score = Score { rows, q, dims, keys: &keys[lines], first, next, out };
                // SAFETY: the set exists, so the CPU has its instructions; the slices are of the promised lengths.
                unsafe { (fused.score_f16)(score) };
            }
            _ => {
                let mut wide = EMPTY;
                for group in groups {
                    for (i, q) in q.chunks(LANES * rows).enumerate() {
                        let wide = &mut wide[..q.len() / rows];
                        self.widen_keys(keys, group, i, wide);
                        let (dims, first) = (wide.len(), group * LANES);
                        self.score(Score { rows, q, dims, keys: wide, first, next, out });
                    }
                }
            }
        }
    }

    /// Adds the values of some positions, weighted, to `rows` rows of `out`. Rows are whole lines long.
    pub(super) fn mix_values(
        &self,
        rows: usize,
        weights: &[[f32; BLOCK]],
        values: Side<'_>,
        positions: Range<usize>,
        out: &mut [f32],
    ) {
        if positions.is_empty() {
            return;
        }
        let width = values.head_dim.next_multiple_of(LANES);
        for column in 0..width / LANES {
            let lines = column * BLOCK + positions.start..column * BLOCK + positions.end;
            let out = &mut out[column * LANES..];
            // The same positions of the next column.
            let last = column + 1 == width / LANES;
            let next = if last { values.next } else { values.lines_at(lines.start + BLOCK, lines.len()) };
            match (values.lines, &self.fused) {
                (Lines::F32(values), _) => {
                    let positions = positions.clone();
                    self.mix(Mix { rows, weights, positions, values: &values[lines], next, width, out });
                }
                (Lines::F16(values), Some(fused)) => {
                    let positions = positions.clone();
                    let mix = Mix { rows, weights, positions, values: &values[lines], next, width, out };
                    // SAFETY: the set exists, so the CPU has its instructions; the slices are of the promised lengths.
                    unsafe { (fused.mix_f16)(mix) };
                }
                _ => {
                    let mut wide = EMPTY;
                    for group in positions.start / LANES..positions.end.div_ceil(LANES) {
                        self.widen_values(values, column, group, &mut wide);
                        let all = group * LANES..(group + 1) * LANES;
                        let some = positions.start.max(all.start)..positions.end.min(all.end);
                        let values = &wide[some.start - all.start..some.end - all.start];
                        self.mix(Mix { rows, weights, positions: some, values, next, width, out });
                    }
                }
            }
        }
    }

    /// Widens keys and values of some positions of a block into `wide`, where they lie as lines of `f32` would.
    pub(super) fn widen(
        &self,
        keys: Side<'_>,
        values: Side<'_>,
        positions: Range<usize>,
        wide: &mut Vec<Line<f32>>,
    ) {
        let dim = keys.head_dim;
        wide.resize(key_lines(dim) + value_lines(dim), Line([0.0; LANES]));
        let (wide_keys, wide_values) = wide.split_at_mut(key_lines(dim));
        let groups = positions.start / LANES..positions.end.div_ceil(LANES);
        for (group, wide) in wide_keys.chunks_exact_mut(dim).enumerate() {
            if groups.contains(&group) {
                let parts = wide.chunks_mut(LANES).enumerate();
                parts.for_each(|(part, wide)| self.widen_keys(keys, group, part, wide));
            }
        }
        for (column, wide) in wide_values.chunks_exact_mut(BLOCK).enumerate() {
            for (group, wide) in wide.chunks_exact_mut(LANES).enumerate() {
                if groups.contains(&group) {
                    self.widen_values(values, column, group, wide);
                }
            }
        }
    }

    /// Keys of the 32 positions of `group`, up to 32 dimensions from `32 * part` on.
    fn widen_keys(&self, keys: Side<'_>, group: usize, part: usize, out: &mut [Line<f32>]) {
        self.widen_lines(keys.lines, group * keys.head_dim + part * LANES, out);
    }

    /// Values of the 32 positions of `group`, 32 dimensions from `32 * column` on.
    fn widen_values(&self, values: Side<'_>, column: usize, group: usize, out: &mut [Line<f32>]) {
        self.widen_lines(values.lines, column * BLOCK + group * LANES, out);
    }

    fn widen_lines(&self, lines: Lines<'_>, at: usize, out: &mut [Line<f32>]) {
        match lines {
            // SAFETY: the set exists, so the CPU has its instructions.
            Lines::F16(lines) => unsafe { (self.widen_f16)(&lines[at..at + out.len()], out) },
            Lines::F32(lines) => out.copy_from_slice(&lines[at..at + out.len()]),
            Lines::Q8(_) | Lines::Q4(_) => {} // never widened
        }
    }

    fn score(&self, score: Score<'_, Line<f32>>) {
        // SAFETY: the set exists, so the CPU has its instructions; the slices are of the promised lengths.
        unsafe { (self.score)(score) };
    }

    fn mix(&self, mix: Mix<'_, Line<f32>>) {
        // SAFETY: as above.
        unsafe { (self.mix)(mix) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_where_they_lie() {
        let (halves, floats) = (vec![Line([0u16; LANES]); 9], EMPTY);
        for (lines, want) in [
            (Lines::F16(&halves), (&raw const halves[3]).addr()),
            (Lines::F32(&floats), (&raw const floats[3]).addr()),
        ] {
            let side = Side { lines, head_dim: 1, next: (0, 0) };
            assert_eq!(side.lines_at(3, 5), (want, 5));
        }
    }
}
