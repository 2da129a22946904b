//! Attention with AVX-512 (F, BW, DQ, VL).

use std::arch::x86_64::*;

use super::{BLOCK, EXP2, EXP2_MIN, Functions, Fused, LANES, Line, Mix, Run, SUMS, Score, codes, rows};

/// 14 rows of two vectors, two vectors of keys or values and one of a query or a weight: 31 of 32 registers.
pub(super) const ROWS: usize = 14;

pub(in crate::kernels) static FUNCTIONS: Functions = Functions {
    rows: ROWS,
    score: score::<f32>,
    soften,
    mix: mix::<f32>,
    widen_f16,
    fused: Some(Fused { score_f16: score::<u16>, mix_f16: mix::<u16> }),
    merge,
    codes: codes::avx512::FUNCTIONS,
};

/// How far ahead lines in single precision and those that are widened to it are requested, in bytes; found by trial.
const WIDE_AHEAD: usize = 2048;
const HALF_AHEAD: usize = 8192;

/// An element of the cache.
pub(super) trait Element: Copy {
    /// The lines that are requested while `lines` are computed with; after them come `next`.
    fn ahead(lines: &[Line<Self>], next: Run) -> Run;
    /// A line as `f32`. Only for CPUs with AVX-512.
    unsafe fn widen(line: &Line<Self>) -> [__m512; 2];
}

impl Element for u16 {
    #[inline]
    fn ahead(_lines: &[Line<u16>], next: Run) -> Run {
        next
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn widen(line: &Line<u16>) -> [__m512; 2] {
        let at = line.0.as_ptr();
        // SAFETY: 16 halves from each address, all inside the line.
        unsafe {
            [
                _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
                _mm512_cvtph_ps(_mm256_loadu_si256(at.add(16).cast())),
            ]
        }
    }
}

impl Element for f32 {
    /// From caches, where they were widened, as a rule.
    #[inline]
    fn ahead(lines: &[Line<f32>], _next: Run) -> Run {
        (lines.as_ptr().addr().wrapping_add(WIDE_AHEAD), lines.len())
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn widen(line: &Line<f32>) -> [__m512; 2] {
        let at = line.0.as_ptr();
        // SAFETY: 16 floats from each address, all inside the line.
        unsafe { [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))] }
    }
}

/// Asks for line number `number` of some, if there is such a line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn prefetch_line<E>((first, count): Run, number: usize) {
    if number < count {
        let line = first.wrapping_add(number * size_of::<Line<E>>());
        (0..size_of::<Line<E>>()).step_by(64).for_each(|at| prefetch(line.wrapping_add(at)));
    }
}

/// Asks for what lies at this address, whether there is anything or not.
#[inline]
#[allow(unused_unsafe)] // the intrinsic became safe after our oldest supported compiler
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn prefetch(address: usize) {
    // SAFETY: a prefetch is a hint; it does not access memory that isn't mapped and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address)) };
}

/// Calls the instance of a function for the number of rows.
macro_rules! for_rows {
    ($function:ident $(<$e:ident>)? ($arg:ident)) => {
        for_rows!(@ $arg; [$function $(<$e>)?] 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    (@ $arg:ident; $function:tt $($n:literal)*) => {
        match $arg.rows {
            $($n => for_rows!(# $function $n $arg),)*
            _ => for_rows!(# $function ROWS $arg),
        }
    };
    (# [$f:ident <$e:ident>] $n:tt $arg:ident) => { $f::<$e, $n>($arg) };
    (# [$f:ident] $n:tt $arg:ident) => { $f::<$n>($arg) };
}
pub(super) use for_rows;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn score<E: Element>(s: Score<'_, Line<E>>) {
    for_rows!(score_rows<E>(s))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn score_rows<E: Element, const R: usize>(s: Score<'_, Line<E>>) {
    let Some(rows) = s.out.first_chunk_mut::<R>() else { return };
    for (g, keys) in s.keys.chunks_exact(s.dims).enumerate() {
        let at = s.first + g * LANES;
        let mut acc = [[_mm512_setzero_ps(); 2]; R];
        for (acc, row) in acc.iter_mut().zip(&*rows) {
            if let Some(sums) = row[at..].first_chunk() {
                *acc = load_line(sums);
            }
        }
        let next = s.keys.get((g + 1) * s.dims..(g + 2) * s.dims);
        let ahead = E::ahead(keys, next.map_or(s.next, |keys| (keys.as_ptr().addr(), keys.len())));
        for (i, (q, key)) in s.q.as_chunks::<R>().0.iter().zip(keys).enumerate() {
            // There may be twice as many lines of values as of keys in a group.
            prefetch_line::<E>(ahead, i);
            prefetch_line::<E>(ahead, i + s.dims);
            // SAFETY: this function has the target features that `widen` asks for.
            let key = unsafe { E::widen(key) };
            for (acc, q) in acc.iter_mut().zip(q) {
                let q = _mm512_set1_ps(*q);
                *acc = [_mm512_fmadd_ps(q, key[0], acc[0]), _mm512_fmadd_ps(q, key[1], acc[1])];
            }
        }
        for (acc, row) in acc.iter().zip(&mut *rows) {
            if let Some(sums) = row[at..].first_chunk_mut() {
                store_line(sums, *acc);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn load(x: &[f32; 16]) -> __m512 {
    // SAFETY: 16 initialised floats; the load needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn store(out: &mut [f32; 16], x: __m512) {
    // SAFETY: room for 16 floats; the store needs no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) }
}

/// Loads 32 elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn load_line(x: &[f32; LANES]) -> [__m512; 2] {
    let halves = x.as_chunks::<16>().0;
    [load(&halves[0]), load(&halves[1])]
}

/// Stores 32 elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn store_line(out: &mut [f32; LANES], x: [__m512; 2]) {
    let halves = out.as_chunks_mut::<16>().0;
    store(&mut halves[0], x[0]);
    store(&mut halves[1], x[1]);
}

/// The results of `scalar::exp2_with`, from fewer operations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn exp2_with<const N: usize>(coefficients: &[f32; N], x: __m512) -> __m512 {
    let n = _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(x);
    let f = _mm512_sub_ps(x, n);
    let mut p = _mm512_set1_ps(coefficients[0]);
    for c in &coefficients[1..] {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(*c));
    }
    // True for NaN, which stays.
    let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(EXP2_MIN));
    _mm512_maskz_scalef_ps(keep, p, n)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn exp2(x: __m512) -> __m512 {
    exp2_with(&EXP2, x)
}

/// The greatest of these, a multiple of 16, and of `before`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn greatest(scores: &[f32], before: f32) -> f32 {
    // Four vectors side by side: the chain of one would be waited for.
    let mut most = [_mm512_set1_ps(before); 4];
    let (fours, rest) = scores.as_chunks::<{ 4 * SUMS }>();
    for four in fours {
        for (most, s) in most.iter_mut().zip(four.as_chunks::<SUMS>().0) {
            *most = _mm512_max_ps(load(s), *most);
        }
    }
    for s in rest.as_chunks::<SUMS>().0 {
        most[0] = _mm512_max_ps(load(s), most[0]);
    }
    _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3])))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn soften(scores: &mut [f32], before: f32, sums: &mut [f32; SUMS]) -> (f32, f32) {
    let max = greatest(scores, before);
    let shrink = exp2(_mm512_set1_ps(before - max));
    let mut sum = _mm512_mul_ps(load(sums), shrink);
    for s in scores.as_chunks_mut::<SUMS>().0 {
        let weight = exp2(_mm512_sub_ps(load(s), _mm512_set1_ps(max)));
        store(s, weight);
        sum = _mm512_add_ps(sum, weight);
    }
    store(sums, sum);
    (max, _mm512_cvtss_f32(shrink))
}

/// Loads 32 elements at each multiple of `width`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn load_rows<const R: usize>(x: &[f32], width: usize) -> [[__m512; 2]; R] {
    assert!(x.len() >= (R - 1) * width + LANES);
    let mut rows = [[_mm512_setzero_ps(); 2]; R];
    for (r, row) in rows.iter_mut().enumerate() {
        let at = x.as_ptr().wrapping_add(r * width);
        // SAFETY: 32 floats behind the multiple of `width`, inside `x`, as checked above.
        *row = unsafe { [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))] };
    }
    rows
}

/// Stores 32 elements at each multiple of `width`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn store_rows<const R: usize>(out: &mut [f32], width: usize, rows: &[[__m512; 2]; R]) {
    assert!(out.len() >= (R - 1) * width + LANES);
    for (r, row) in rows.iter().enumerate() {
        let at = out.as_mut_ptr().wrapping_add(r * width);
        // SAFETY: 32 floats behind the multiple of `width`, inside `out`, as checked above.
        unsafe {
            _mm512_storeu_ps(at, row[0]);
            _mm512_storeu_ps(at.add(16), row[1]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn mix<E: Element>(m: Mix<'_, Line<E>>) {
    for_rows!(mix_rows<E>(m))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn mix_rows<E: Element, const R: usize>(m: Mix<'_, Line<E>>) {
    let Some(weights) = m.weights.first_chunk::<R>() else { return };
    assert!(m.positions.end <= BLOCK);
    let mut acc = load_rows::<R>(m.out, m.width);
    let ahead = E::ahead(m.values, m.next);
    for (i, values) in m.positions.clone().zip(m.values) {
        prefetch_line::<E>(ahead, i - m.positions.start);
        // SAFETY: this function has the target features that `widen` asks for.
        let values = unsafe { E::widen(values) };
        for r in 0..R {
            // SAFETY: positions are inside a block, as checked above.
            let weight = _mm512_set1_ps(unsafe { *weights[r].get_unchecked(i) });
            acc[r][0] = _mm512_fmadd_ps(weight, values[0], acc[r][0]);
            acc[r][1] = _mm512_fmadd_ps(weight, values[1], acc[r][1]);
        }
    }
    store_rows(m.out, m.width, &acc);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn widen_f16(halves: &[Line<u16>], out: &mut [Line<f32>]) {
    let ahead = (halves.as_ptr().addr().wrapping_add(HALF_AHEAD), halves.len());
    for (i, (half, out)) in halves.iter().zip(out).enumerate() {
        prefetch_line::<u16>(ahead, i);
        // SAFETY: this function has the target features that `widen` asks for.
        store_line(&mut out.0, unsafe { u16::widen(half) });
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn merge(total: &mut [f32], part: &[f32], max: f32, sum: f32) {
    rows::merge_parts(total, part, max, sum, |x| _mm512_cvtss_f32(exp2(_mm512_set1_ps(x))));
}
