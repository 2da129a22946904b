//! The reference.

use super::super::EXP2_SHORT;
use super::super::scalar::{exp2_with, fma, widened};
use super::{Functions, LANES, Mix, SUMS, Score, Softened, Square, Square4, quantize, units};

pub(in crate::kernels::attention) const FUNCTIONS: Functions =
    Functions { quantize, score, soften, mix, unpack };

fn unpack(from: &[Square4], to: &mut [Square]) {
    from.iter().zip(to).for_each(|(from, to)| super::unpack(from, to));
}

fn score(s: Score<'_>) {
    for (g, squares) in s.keys.chunks_exact(s.parts).enumerate() {
        let at = s.first + g * LANES;
        for (r, row) in s.out.iter_mut().take(s.rows).enumerate() {
            let Some(sums) = row[at..].first_chunk_mut::<LANES>() else { return };
            sums.fill(0.0);
            for (part, square) in squares.iter().enumerate() {
                let mut dots = [0; LANES];
                let codes = s.q.codes[part * LANES / 4 * s.rows + r..].iter().step_by(s.rows);
                for (q, keys) in codes.zip(square.codes.as_chunks::<{ 4 * LANES }>().0) {
                    for (dot, key) in dots.iter_mut().zip(keys.as_chunks::<4>().0) {
                        *dot += q.iter().zip(key).map(|(q, k)| i32::from(*q) * i32::from(*k)).sum::<i32>();
                    }
                }
                let scale = s.q.scales[part * s.rows + r];
                for ((sum, dot), of_key) in sums.iter_mut().zip(dots).zip(square.scales) {
                    *sum = fma(dot as f32, widened(of_key) * scale, *sum);
                }
            }
        }
    }
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
