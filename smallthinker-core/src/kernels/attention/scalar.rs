//! The reference: the order of operations that every set follows.

use super::{EXP2, EXP2_MIN, EXP2_ROUND, Functions, LANES, Line, Mix, SUMS, Score, codes, rows};

pub(in crate::kernels) static FUNCTIONS: Functions =
    Functions { rows: 8, score, soften, mix, widen_f16, fused: None, merge, codes: codes::scalar::FUNCTIONS };

/// `a · b + c`, rounded once.
///
/// Where the compiler may not use the instruction, `f32::mul_add` calls a slow library function. The product is
/// exact in `f64`; rounding the sum to `f64` first harms only if that gives the middle between two `f32`.
#[inline]
pub(super) fn fma(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        return a.mul_add(b, c);
    }
    const DROPPED: u64 = (1 << 29) - 1;
    let sum = f64::from(a) * f64::from(b) + f64::from(c);
    let subnormal = sum != 0.0 && sum.abs() < f64::from(f32::MIN_POSITIVE);
    if sum.to_bits() & DROPPED == 1 << 28 || subnormal { a.mul_add(b, c) } else { sum as f32 }
}

/// `2^x` for `x <= 0`, within 1.1 units in the last place; 0 below -126; NaN stays NaN.
#[inline]
pub(super) fn exp2(x: f32) -> f32 {
    exp2_with(&EXP2, x)
}

/// As [`exp2`], with these coefficients.
#[inline]
pub(super) fn exp2_with(coefficients: &[f32], x: f32) -> f32 {
    let rounded = x + EXP2_ROUND;
    let f = x - (rounded - EXP2_ROUND);
    let p = coefficients.iter().copied().reduce(|p, c| fma(p, f, c)).unwrap_or(1.0);
    if x < EXP2_MIN { 0.0 } else { p * f32::from_bits(rounded.to_bits() << 23) }
}

fn score(s: Score<'_, Line<f32>>) {
    for (g, keys) in s.keys.chunks_exact(s.dims).enumerate() {
        let at = s.first + g * LANES;
        for (r, row) in s.out.iter_mut().take(s.rows).enumerate() {
            let Some(sums) = row[at..].first_chunk_mut::<LANES>() else { return };
            for (q, Line(keys)) in s.q.chunks_exact(s.rows).zip(keys) {
                sums.iter_mut().zip(keys).for_each(|(sum, k)| *sum = fma(q[r], *k, *sum));
            }
        }
    }
}

fn soften(scores: &mut [f32], before: f32, sums: &mut [f32; SUMS]) -> (f32, f32) {
    let max = scores.iter().fold(before, |m, s| m.max(*s));
    let shrink = exp2(before - max);
    sums.iter_mut().for_each(|sum| *sum *= shrink);
    for scores in scores.as_chunks_mut::<SUMS>().0 {
        for (score, sum) in scores.iter_mut().zip(sums.iter_mut()) {
            *score = exp2(*score - max);
            *sum += *score;
        }
    }
    (max, shrink)
}

fn mix(m: Mix<'_, Line<f32>>) {
    for (weights, out) in m.weights.iter().zip(m.out.chunks_mut(m.width)).take(m.rows) {
        let Some(out) = out.first_chunk_mut::<LANES>() else { return };
        for (w, Line(values)) in weights[m.positions.clone()].iter().zip(m.values) {
            out.iter_mut().zip(values).for_each(|(out, v)| *out = fma(*w, *v, *out));
        }
    }
}

fn merge(total: &mut [f32], part: &[f32], max: f32, sum: f32) {
    rows::merge_parts(total, part, max, sum, exp2);
}

fn widen_f16(halves: &[Line<u16>], out: &mut [Line<f32>]) {
    for (half, out) in halves.iter().zip(out) {
        out.0 = half.0.map(widened);
    }
}

pub(super) fn widened(half: u16) -> f32 {
    half::f16::from_bits(half).to_f32_const()
}
