//! Attention with AVX2, FMA and F16C: as with AVX-512, with half a line at a time.

use std::arch::x86_64::*;

use super::{BLOCK, EXP2, EXP2_MIN, EXP2_ROUND, Functions, LANES, Line, Mix, SUMS, Score};
use crate::kernels::avx2::{load_f32, load_half, store_f32};

/// Six rows of two vectors, two vectors of keys or values and one of a query or a weight: 15 of 16 registers.
const ROWS: usize = 6;

/// Elements of half a line.
const HALF: usize = LANES / 2;

pub(in crate::kernels) static FUNCTIONS: Functions = Functions {
    rows: ROWS,
    score_f16: score::<u16>,
    score_f32: score::<f32>,
    soften,
    mix_f16: mix::<u16>,
    mix_f32: mix::<f32>,
    widen,
};

/// How far ahead of the arithmetic lines are requested from memory.
const PREFETCH_BYTES: usize = 4096;

/// An element of the cache.
trait Element: Copy {
    /// One half of a line as `f32`. Only for CPUs with AVX2 and F16C.
    unsafe fn widen(line: &Line<Self>, half: usize) -> [__m256; 2];
}

impl Element for u16 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen(line: &Line<u16>, half: usize) -> [__m256; 2] {
        let eights = line.0.as_chunks::<8>().0;
        [_mm256_cvtph_ps(load_half(&eights[2 * half])), _mm256_cvtph_ps(load_half(&eights[2 * half + 1]))]
    }
}

impl Element for f32 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen(line: &Line<f32>, half: usize) -> [__m256; 2] {
        let eights = line.0.as_chunks::<8>().0;
        [load_f32(&eights[2 * half]), load_f32(&eights[2 * half + 1])]
    }
}

/// Asks for the line [`PREFETCH_BYTES`] after this one. The address may lie outside the cache.
#[inline]
#[allow(unused_unsafe)] // the intrinsic became safe after our oldest supported compiler
#[target_feature(enable = "avx2,fma,f16c")]
fn prefetch_after<E>(line: &Line<E>) {
    let ahead = std::ptr::from_ref(line).cast::<i8>().wrapping_add(PREFETCH_BYTES);
    for part in 0..size_of::<Line<E>>() / 64 {
        // SAFETY: a prefetch is a hint; it does not access memory that isn't mapped and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * part)) };
    }
}

/// Calls the instance of a function for the number of rows.
macro_rules! for_rows {
    ($function:ident::<$e:ident>($arg:ident); $($n:literal)*) => {
        match $arg.rows {
            $($n => $function::<$e, $n>($arg),)*
            _ => $function::<$e, ROWS>($arg),
        }
    };
}

#[target_feature(enable = "avx2,fma,f16c")]
fn score<E: Element>(s: Score<'_, E>) {
    for_rows!(score_rows::<E>(s); 1 2 3 4 5)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn score_rows<E: Element, const R: usize>(s: Score<'_, E>) {
    for (g, keys) in s.keys.chunks_exact(s.head_dim).enumerate() {
        for half in 0..2 {
            let mut acc = [[_mm256_setzero_ps(); 2]; R];
            for (q, key) in s.q.as_chunks::<R>().0.iter().zip(keys) {
                if half == 0 {
                    prefetch_after(key);
                }
                // SAFETY: this function has the target features that `widen` asks for.
                let key = unsafe { E::widen(key, half) };
                for (acc, q) in acc.iter_mut().zip(q) {
                    let q = _mm256_set1_ps(*q);
                    *acc = [_mm256_fmadd_ps(q, key[0], acc[0]), _mm256_fmadd_ps(q, key[1], acc[1])];
                }
            }
            let at = s.first + g * LANES + half * HALF;
            for (row, acc) in s.out.iter_mut().zip(acc) {
                let eights = row[at..].as_chunks_mut::<8>().0;
                store_f32(&mut eights[0], acc[0]);
                store_f32(&mut eights[1], acc[1]);
            }
        }
    }
}

/// The operations of `scalar::exp2`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn exp2(x: __m256) -> __m256 {
    let rounded = _mm256_add_ps(x, _mm256_set1_ps(EXP2_ROUND));
    let f = _mm256_sub_ps(x, _mm256_sub_ps(rounded, _mm256_set1_ps(EXP2_ROUND)));
    let mut p = _mm256_set1_ps(EXP2[0]);
    for c in &EXP2[1..] {
        p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(*c));
    }
    let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(rounded)));
    // True for NaN, which stays.
    let keep = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(EXP2_MIN));
    _mm256_and_ps(keep, _mm256_mul_ps(p, scale))
}

/// The greatest lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn greatest(x: __m256) -> f32 {
    let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn soften(scores: &mut [f32], before: f32, sums: &mut [f32; SUMS]) -> (f32, f32) {
    let scores = scores.as_chunks_mut::<8>().0;
    let most = scores.iter().fold(_mm256_set1_ps(before), |m, s| _mm256_max_ps(load_f32(s), m));
    let max = greatest(most);
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
fn mix<E: Element>(m: Mix<'_, E>) {
    for_rows!(mix_rows::<E>(m); 1 2 3 4 5)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn mix_rows<E: Element, const R: usize>(m: Mix<'_, E>) {
    let Some(weights) = m.weights.first_chunk::<R>() else { return };
    assert!(m.out.len() >= R * m.width && m.values.len() <= m.width / LANES * BLOCK);
    for (c, column) in m.values.chunks_exact(BLOCK).enumerate() {
        for half in 0..2 {
            let out = m.out.as_mut_ptr().wrapping_add(c * LANES + half * HALF);
            let mut acc = [[_mm256_setzero_ps(); 2]; R];
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: row `r` is in `out`, as checked above, and `c` is one of its lines.
                *acc = unsafe {
                    [_mm256_loadu_ps(out.add(r * m.width)), _mm256_loadu_ps(out.add(r * m.width + 8))]
                };
            }
            for (i, values) in m.positions.clone().zip(&column[m.positions.clone()]) {
                if half == 0 {
                    prefetch_after(values);
                }
                // SAFETY: this function has the target features that `widen` asks for.
                let values = unsafe { E::widen(values, half) };
                for r in 0..R {
                    // SAFETY: slicing `column`, which is a block long, has checked the positions.
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
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen(halves: &[Line<u16>], out: &mut [Line<f32>]) {
    for (half, out) in halves.iter().zip(out) {
        prefetch_after(half);
        for (i, out) in out.0.as_chunks_mut::<HALF>().0.iter_mut().enumerate() {
            // SAFETY: this function has the target features that `widen` asks for.
            let x = unsafe { u16::widen(half, i) };
            out.as_chunks_mut::<8>().0.iter_mut().zip(x).for_each(|(out, x)| store_f32(out, x));
        }
    }
}
