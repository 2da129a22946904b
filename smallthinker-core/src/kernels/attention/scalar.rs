//! The reference: the order of operations that every set follows.

use super::{BLOCK, EXP2, EXP2_MIN, EXP2_ROUND, Functions, LANES, Line, Mix, SUMS, Score};

pub(in crate::kernels) static FUNCTIONS: Functions = Functions {
    rows: 8,
    score_f16: score::<u16>,
    score_f32: score::<f32>,
    soften,
    mix_f16: mix::<u16>,
    mix_f32: mix::<f32>,
    widen,
};

/// An element of the cache.
pub(super) trait Element: Copy {
    /// Its value, exactly.
    fn widen(self) -> f32;
}

impl Element for u16 {
    #[inline]
    fn widen(self) -> f32 {
        half::f16::from_bits(self).to_f32_const()
    }
}

impl Element for f32 {
    #[inline]
    fn widen(self) -> f32 {
        self
    }
}

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
    let rounded = x + EXP2_ROUND;
    let f = x - (rounded - EXP2_ROUND);
    let p = EXP2.into_iter().reduce(|p, c| fma(p, f, c)).unwrap_or(1.0);
    if x < EXP2_MIN { 0.0 } else { p * f32::from_bits(rounded.to_bits() << 23) }
}

fn score<E: Element>(s: Score<'_, E>) {
    for (g, keys) in s.keys.chunks_exact(s.head_dim).enumerate() {
        let at = s.first + g * LANES;
        for row in s.out.iter_mut().take(s.rows) {
            row[at..at + LANES].fill(0.0);
        }
        for (q, keys) in s.q.chunks_exact(s.rows).zip(keys) {
            let keys = keys.0.map(E::widen);
            for (q, row) in q.iter().zip(s.out.iter_mut()) {
                for (sum, k) in row[at..at + LANES].iter_mut().zip(&keys) {
                    *sum = fma(*q, *k, *sum);
                }
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

fn mix<E: Element>(m: Mix<'_, E>) {
    for (c, column) in m.values.chunks_exact(BLOCK).enumerate() {
        for position in m.positions.clone() {
            let Line(values) = column[position];
            let values = values.map(E::widen);
            for (weights, out) in m.weights.iter().zip(m.out.chunks_exact_mut(m.width)).take(m.rows) {
                for (out, v) in out[c * LANES..].iter_mut().zip(&values) {
                    *out = fma(weights[position], *v, *out);
                }
            }
        }
    }
}

fn widen(halves: &[Line<u16>], out: &mut [Line<f32>]) {
    for (half, out) in halves.iter().zip(out) {
        out.0 = half.0.map(u16::widen);
    }
}
