//! Attention with AVX2, FMA and F16C: as with AVX-512, with half a line at a time.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{BLOCK, EXP2, EXP2_MIN, EXP2_ROUND, Functions, LANES, Line, Mix, SUMS, Score, codes, rows};
use crate::kernels::avx2::{load_f32, load_half, store_f32};

/// Six rows of two vectors, two vectors of keys or values and one of a query or a weight: 15 of 16 registers.
pub(super) const ROWS: usize = 6;

/// Elements of half a line.
const HALF: usize = LANES / 2;

pub(in crate::kernels) static FUNCTIONS: Functions = Functions {
    rows: 2 * ROWS,
    score,
    soften,
    mix,
    widen_f16,
    fused: None,
    merge,
    codes: codes::avx2::FUNCTIONS,
};

/// How far ahead of the arithmetic lines are requested from memory, in bytes; found by trial.
const AHEAD: usize = 4096;

/// Asks for what lies `distance` bytes after this. The address may lie outside the cache.
#[inline]
#[allow(unused_unsafe)] // the intrinsic became safe after our oldest supported compiler
#[target_feature(enable = "avx2,fma,f16c")]
fn prefetch_after<T>(line: &T, distance: usize) {
    let ahead = std::ptr::from_ref(line).cast::<i8>().wrapping_add(distance);
    for part in 0..size_of::<T>().div_ceil(64) {
        // SAFETY: a prefetch is a hint; it does not access memory that isn't mapped and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * part)) };
    }
}

/// Asks for what lies at these addresses, whether there is anything or not.
#[inline]
#[allow(unused_unsafe)] // as above
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prefetch(addresses: Range<usize>) {
    for address in addresses.step_by(64) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address)) };
    }
}

/// Calls the instance of a function for the rows, in one part or in two of nearly the same length.
macro_rules! for_rows {
    ($function:ident($arg:ident); $($n:literal)*) => {
        let mut from = 0;
        for count in [$arg.rows.div_ceil(2), $arg.rows / 2] {
            let count = if $arg.rows > ROWS { count } else { $arg.rows };
            match count {
                _ if from == $arg.rows => {}
                $($n => $function::<$n>(&mut $arg, from),)*
                _ => $function::<ROWS>(&mut $arg, from),
            }
            from += count;
        }
    };
}
pub(super) use for_rows;

#[target_feature(enable = "avx2,fma,f16c")]
fn score(mut s: Score<'_, Line<f32>>) {
    for_rows!(score_rows(s); 1 2 3 4 5);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn score_rows<const R: usize>(s: &mut Score<'_, Line<f32>>, from: usize) {
    let Some(rows) = s.out[from..].first_chunk_mut::<R>() else { return };
    for (g, keys) in s.keys.chunks_exact(s.dims).enumerate() {
        for half in 0..2 {
            // What was widened just now comes in pieces of at most 32 lines, and need not be fetched.
            let first_pass = from + half == 0 && s.keys.len() > LANES;
            let at = s.first + g * LANES + half * HALF;
            let mut acc = [[_mm256_setzero_ps(); 2]; R];
            for (acc, row) in acc.iter_mut().zip(&*rows) {
                let sums = row[at..at + HALF].as_chunks::<8>().0;
                *acc = [load_f32(&sums[0]), load_f32(&sums[1])];
            }
            for (q, key) in s.q.chunks_exact(s.rows).zip(keys) {
                let Some(q) = q[from..].first_chunk::<R>() else { return };
                if first_pass {
                    prefetch_after(key, AHEAD);
                }
                let Line(key) = key;
                let key = key[half * HALF..].as_chunks::<8>().0;
                let key = [load_f32(&key[0]), load_f32(&key[1])];
                for (acc, q) in acc.iter_mut().zip(q) {
                    let q = _mm256_set1_ps(*q);
                    *acc = [_mm256_fmadd_ps(q, key[0], acc[0]), _mm256_fmadd_ps(q, key[1], acc[1])];
                }
            }
            for (acc, row) in acc.iter().zip(&mut *rows) {
                let sums = row[at..at + HALF].as_chunks_mut::<8>().0;
                store_f32(&mut sums[0], acc[0]);
                store_f32(&mut sums[1], acc[1]);
            }
        }
    }
}

/// The operations of `scalar::exp2_with`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn exp2_with(coefficients: &[f32], x: __m256) -> __m256 {
    let rounded = _mm256_add_ps(x, _mm256_set1_ps(EXP2_ROUND));
    let f = _mm256_sub_ps(x, _mm256_sub_ps(rounded, _mm256_set1_ps(EXP2_ROUND)));
    let mut p = _mm256_set1_ps(coefficients[0]);
    for c in &coefficients[1..] {
        p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(*c));
    }
    let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(rounded)));
    // True for NaN, which stays.
    let keep = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(EXP2_MIN));
    _mm256_and_ps(keep, _mm256_mul_ps(p, scale))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn exp2(x: __m256) -> __m256 {
    exp2_with(&EXP2, x)
}

/// The greatest of these, a multiple of 8, and of `before`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn greatest(scores: &[f32], before: f32) -> f32 {
    let scores = scores.as_chunks::<8>().0;
    let x = scores.iter().fold(_mm256_set1_ps(before), |m, s| _mm256_max_ps(load_f32(s), m));
    let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn soften(scores: &mut [f32], before: f32, sums: &mut [f32; SUMS]) -> (f32, f32) {
    let max = greatest(scores, before);
    let scores = scores.as_chunks_mut::<8>().0;
    let shrink = exp2(_mm256_set1_ps(before - max));
    let sums = sums.as_chunks_mut::<8>().0;
    for (half, sums) in sums.iter_mut().enumerate() {
        let mut sum = _mm256_mul_ps(load_f32(sums), shrink);
        for s in scores.iter_mut().skip(half).step_by(2) {
            let weight = exp2(_mm256_sub_ps(load_f32(s), _mm256_set1_ps(max)));
            store_f32(s, weight);
            sum = _mm256_add_ps(sum, weight);
        }
        store_f32(sums, sum);
    }
    (max, _mm256_cvtss_f32(shrink))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn mix(mut m: Mix<'_, Line<f32>>) {
    for_rows!(mix_rows(m); 1 2 3 4 5);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn mix_rows<const R: usize>(m: &mut Mix<'_, Line<f32>>, from: usize) {
    let Some(weights) = m.weights[from..].first_chunk::<R>() else { return };
    let out = &mut m.out[from * m.width..];
    assert!(out.len() >= (R - 1) * m.width + LANES && m.positions.end <= BLOCK);
    for half in 0..2 {
        let first_pass = from + half == 0 && m.values.len() > LANES; // as above
        let out = out.as_mut_ptr().wrapping_add(half * HALF);
        let mut acc = [[_mm256_setzero_ps(); 2]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: 16 floats of row `r`, inside `out`, as checked above.
            *acc =
                unsafe { [_mm256_loadu_ps(out.add(r * m.width)), _mm256_loadu_ps(out.add(r * m.width + 8))] };
        }
        for (i, values) in m.positions.clone().zip(m.values) {
            if first_pass {
                prefetch_after(values, AHEAD);
            }
            let Line(values) = values;
            let values = values[half * HALF..].as_chunks::<8>().0;
            let values = [load_f32(&values[0]), load_f32(&values[1])];
            for r in 0..R {
                // SAFETY: positions are inside a block, as checked above.
                let weight = _mm256_set1_ps(unsafe { *weights[r].get_unchecked(i) });
                acc[r][0] = _mm256_fmadd_ps(weight, values[0], acc[r][0]);
                acc[r][1] = _mm256_fmadd_ps(weight, values[1], acc[r][1]);
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                _mm256_storeu_ps(out.add(r * m.width), acc[0]);
                _mm256_storeu_ps(out.add(r * m.width + 8), acc[1]);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen_f16(halves: &[Line<u16>], out: &mut [Line<f32>]) {
    for (half, out) in halves.iter().zip(out) {
        prefetch_after(half, AHEAD);
        for (half, out) in half.0.as_chunks::<8>().0.iter().zip(out.0.as_chunks_mut::<8>().0) {
            store_f32(out, _mm256_cvtph_ps(load_half(half)));
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn merge(total: &mut [f32], part: &[f32], max: f32, sum: f32) {
    rows::merge_parts(total, part, max, sum, |x| _mm256_cvtss_f32(exp2(_mm256_set1_ps(x))));
}
