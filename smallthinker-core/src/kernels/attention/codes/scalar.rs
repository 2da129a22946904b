//! The reference.

use super::super::EXP2_SHORT;
use super::super::HALF_BYTES;
use super::super::scalar::{exp2_with, fma, widened};
use super::{Functions, LANES, Mix, SUMS, Score, Softened, Square, Square4, quantize, short, units};

pub(in crate::kernels::attention) const FUNCTIONS: Functions = Functions {
    quantize,
    score: score::<Square>,
    score4: score::<Square4>,
    soften,
    mix,
    stretch: short::scalar::stretch,
    mix4: short::scalar::mix,
};

/// Squares in 8 bits.
pub(super) trait Eight {
    /// This one, if need be in `room`.
    fn eight<'s>(&'s self, room: &'s mut Square) -> &'s Square;
}

impl Eight for Square {
    fn eight<'s>(&'s self, _room: &'s mut Square) -> &'s Square {
        self
    }
}

impl Eight for Square4 {
    fn eight<'s>(&'s self, room: &'s mut Square) -> &'s Square {
        room.scales = self.scales;
        let parts = room.codes.as_chunks_mut::<{ 2 * HALF_BYTES }>().0;
        for (bytes, codes) in self.codes.as_chunks::<HALF_BYTES>().0.iter().zip(parts) {
            let (lower, upper) = codes.split_at_mut(HALF_BYTES);
            for ((byte, lower), upper) in bytes.iter().zip(lower).zip(upper) {
                (*lower, *upper) = ((byte & 15) as i8 * 2 - 15, (byte >> 4) as i8 * 2 - 15);
            }
        }
        room
    }
}

fn score<S: Eight>(s: Score<'_, S>) {
    let mut room = Square::EMPTY;
    for (i, square) in s.keys.iter().enumerate() {
        let (at, part) = (s.first + i / s.parts * LANES, i % s.parts);
        let square = square.eight(&mut room);
        for (r, row) in s.out.iter_mut().take(s.rows).enumerate() {
            let Some(sums) = row[at..].first_chunk_mut::<LANES>() else { return };
            if part == 0 {
                sums.fill(0.0);
            }
            let mut dots = [0; LANES];
            let codes = s.q.codes[part * LANES / 4 * s.rows + r..].iter().step_by(s.rows);
            for (q, keys) in codes.zip(square.codes.as_chunks::<{ 4 * LANES }>().0) {
                for (dot, key) in dots.iter_mut().zip(keys.as_chunks::<4>().0) {
                    *dot += dot_of(q, key);
                }
            }
            let scale = s.q.scales[part * s.rows + r];
            for ((sum, dot), of_key) in sums.iter_mut().zip(dots).zip(square.scales) {
                *sum = fma(dot as f32, widened(of_key) * scale, *sum);
            }
        }
    }
}

fn dot_of(a: &[i8; 4], b: &[i8; 4]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}

fn soften(scores: &mut [f32], before: f32, sums: &mut [f32; SUMS]) -> Softened {
    let exp2 = |x| exp2_with(&EXP2_SHORT, x);
    let block = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
    let max = before.max(block);
    let (shrink, gain) = (exp2(before - max), exp2(block - max));
    let mut of_block = [0.0; SUMS];
    for scores in scores.as_chunks_mut::<SUMS>().0 {
        for (score, sum) in scores.iter_mut().zip(of_block.iter_mut()) {
            *score = exp2(*score - block);
            *sum += *score;
        }
    }
    sums.iter_mut().zip(of_block).for_each(|(sum, b)| *sum = fma(b, gain, *sum * shrink));
    Softened { max, shrink, gain }
}

fn mix(m: Mix<'_>) {
    let at = |p: usize| (p / LANES, p % LANES);
    let scales = m.positions.clone().map(at).map(|(square, p)| m.values[square].scales[p]);
    let greatest = scales.clone().max().unwrap_or(0);
    let Some((unit, inverse)) = units(greatest, widened(greatest)) else { return };
    for ((weights, gain), out) in m.weights.iter().zip(m.gains).zip(m.out.chunks_mut(m.width)).take(m.rows) {
        let mut dots = [0_i32; LANES];
        for (position, scale) in m.positions.clone().zip(scales.clone()) {
            let weight = (weights[position] * (widened(scale) * inverse)).round_ties_even() as i32;
            let (square, p) = at(position);
            let pair = &m.values[square].codes[p / 2 * 2 * LANES..][..2 * LANES];
            let codes = pair.iter().skip(p % 2).step_by(2);
            dots.iter_mut().zip(codes).for_each(|(dot, code)| *dot += weight * i32::from(*code));
        }
        let factor = unit * *gain;
        out.iter_mut().zip(dots).for_each(|(out, dot)| *out = fma(dot as f32, factor, *out));
    }
}
