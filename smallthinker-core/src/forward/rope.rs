//! Rotary position embedding, rotate-half pairing: element `i` turns with element `i + head_dim / 2`.

use std::collections::HashMap;

/// Cosines and sines for the positions of one chunk, shared by all layers of one base.
#[derive(Default)]
pub(crate) struct RopeTable {
    /// Per base (its bits): `[position][head_dim / 2]` of (cos, sin).
    turns: HashMap<u32, Vec<(f32, f32)>>,
    half: usize,
}

impl RopeTable {
    /// Fills the table for `n` positions from `start` on.
    pub(crate) fn set(&mut self, bases: impl Iterator<Item = f32>, head_dim: usize, start: usize, n: usize) {
        self.half = head_dim / 2;
        self.turns.values_mut().for_each(Vec::clear);
        for base in bases {
            let turns = self.turns.entry(base.to_bits()).or_default();
            if !turns.is_empty() {
                continue;
            }
            // Angles in f64: at position 30,000 an f32 angle is off by a thousandth of a turn.
            let step = |i: usize| f64::from(base).powf(-(i as f64) / self.half as f64);
            let steps: Vec<f64> = (0..self.half).map(step).collect();
            turns.reserve(n * self.half);
            for position in start..start + n {
                turns.extend(steps.iter().map(|s| {
                    let (sin, cos) = (position as f64 * s).sin_cos();
                    (cos as f32, sin as f32)
                }));
            }
        }
    }

    /// Turns all heads of one token (`index` in the chunk).
    pub(crate) fn rotate(&self, base: f32, index: usize, heads: &mut [f32]) {
        let Some(turns) = self.turns.get(&base.to_bits()) else { return };
        let turns = &turns[index * self.half..(index + 1) * self.half];
        for head in heads.chunks_exact_mut(2 * self.half) {
            let (a, b) = head.split_at_mut(self.half);
            for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(turns) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition as a rotation of complex numbers.
    #[test]
    fn turns_pairs_by_position_times_frequency() {
        let mut table = RopeTable::default();
        table.set([10_000.0, 10_000.0].into_iter(), 4, 7, 3);
        let mut x = [1.0, 2.0, 3.0, 4.0, 0.5, -1.0, 0.0, 2.0];
        table.rotate(10_000.0, 2, &mut x);
        for (head, original) in [[1.0f64, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 2.0]].into_iter().enumerate() {
            for i in 0..2 {
                let (radius, angle) = (original[i].hypot(original[i + 2]), original[i + 2].atan2(original[i]));
                let turned = angle + 9.0 * 10_000f64.powf(-(i as f64) / 2.0);
                assert!((f64::from(x[head * 4 + i]) - radius * turned.cos()).abs() < 1e-6);
                assert!((f64::from(x[head * 4 + i + 2]) - radius * turned.sin()).abs() < 1e-6);
            }
        }
    }
}
