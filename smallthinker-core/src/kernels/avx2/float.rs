//! F32, F16 and BF16 weights and the vector operations of the KV cache with AVX2.

use std::arch::x86_64::*;

use super::{load, load_f32, load_half, prefetch_after, store_f32, sum};
use crate::kernels::{TILE_TOKENS, Tile};
use crate::tensor::block::{Plain, cast, padded};

/// A float weight type. `widen` may be called only on CPUs with AVX2, FMA and F16C.
pub(super) trait Float {
    /// Eight weights as stored.
    type Eight: Plain;
    /// The same in `f32`.
    unsafe fn widen(eight: &Self::Eight) -> __m256;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;

impl Float for F32 {
    type Eight = [u8; 32];
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen(eight: &[u8; 32]) -> __m256 {
        _mm256_castsi256_ps(load(eight))
    }
}

impl Float for F16 {
    type Eight = [u8; 16];
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen(eight: &[u8; 16]) -> __m256 {
        _mm256_cvtph_ps(load_half(eight))
    }
}

impl Float for BF16 {
    type Eight = [u8; 16];
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen(eight: &[u8; 16]) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_half(eight))))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tile<F: Float>(t: Tile<'_>) {
    match t.acts.len() {
        1 => rows::<F, 1>(t),
        2 => rows::<F, 2>(t),
        3 => rows::<F, 3>(t),
        _ => rows::<F, TILE_TOKENS>(t),
    }
}

/// Sixteen elements at a time, the last ones padded with zeros on both sides.
#[target_feature(enable = "avx2,fma,f16c")]
fn rows<F: Float, const T: usize>(mut t: Tile<'_>) {
    let acts: [(&[[f32; 16]], [f32; 16]); T] =
        std::array::from_fn(|k| t.acts.get(k).map_or((&[][..], [0.0; 16]), |a| pad(a.values)));
    for (r, row) in t.rows.chunks_exact(t.row_bytes).enumerate() {
        let (pairs, rest) = cast::<[F::Eight; 2]>(row);
        let mut acc = [[_mm256_setzero_ps(); 2]; T];
        for (i, pair) in pairs.iter().enumerate() {
            prefetch_after(pair);
            for k in 0..T {
                let Some(x) = acts[k].0.get(i) else { continue };
                // SAFETY: this function has the target features that `widen` asks for.
                acc[k] = unsafe { multiply::<F>(pair, x, acc[k]) };
            }
        }
        if !rest.is_empty() {
            let pair = padded::<[F::Eight; 2]>(rest);
            for k in 0..T {
                // SAFETY: as above.
                acc[k] = unsafe { multiply::<F>(&pair, &acts[k].1, acc[k]) };
            }
        }
        t.put(r, &acc.map(|[even, odd]| sum(_mm256_add_ps(even, odd))));
    }
}

/// Whole sixteens, and the rest padded with zeros.
#[inline]
fn pad(x: &[f32]) -> (&[[f32; 16]], [f32; 16]) {
    let (whole, rest) = x.as_chunks::<16>();
    let mut tail = [0.0; 16];
    for (t, x) in tail.iter_mut().zip(rest) {
        *t = *x;
    }
    (whole, tail)
}

/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply<F: Float>(pair: &[F::Eight; 2], x: &[f32; 16], acc: [__m256; 2]) -> [__m256; 2] {
    let [low, high] = [0, 1].map(|i| load_f32(&x.as_chunks::<8>().0[i]));
    // SAFETY: the caller's promise.
    let (a, b) = unsafe { (F::widen(&pair[0]), F::widen(&pair[1])) };
    [_mm256_fmadd_ps(a, low, acc[0]), _mm256_fmadd_ps(b, high, acc[1])]
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn dot_f16(q: &[f32], k: &[u16]) -> f32 {
    let mut acc = [_mm256_setzero_ps(); 4];
    let ((q, q_rest), (k, k_rest)) = (q.as_chunks::<32>(), k.as_chunks::<32>());
    for (q, k) in q.iter().zip(k) {
        for (i, acc) in acc.iter_mut().enumerate() {
            let k = _mm256_cvtph_ps(load_half(&k.as_chunks::<8>().0[i]));
            *acc = _mm256_fmadd_ps(load_f32(&q.as_chunks::<8>().0[i]), k, *acc);
        }
    }
    let mut tail = 0.0;
    for (q, k) in q_rest.iter().zip(k_rest) {
        tail += q * half::f16::from_bits(*k).to_f32_const();
    }
    sum(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]))) + tail
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [_mm256_setzero_ps(); 4];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<32>(), b.as_chunks::<32>());
    for (a, b) in a.iter().zip(b) {
        for (i, acc) in acc.iter_mut().enumerate() {
            *acc =
                _mm256_fmadd_ps(load_f32(&a.as_chunks::<8>().0[i]), load_f32(&b.as_chunks::<8>().0[i]), *acc);
        }
    }
    let tail: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sum(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]))) + tail
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn axpy_f16(acc: &mut [f32], w: f32, v: &[u16]) {
    let ((acc, acc_rest), (v, v_rest)) = (acc.as_chunks_mut::<8>(), v.as_chunks::<8>());
    for (acc, v) in acc.iter_mut().zip(v) {
        let v = _mm256_cvtph_ps(load_half(v));
        store_f32(acc, _mm256_fmadd_ps(_mm256_set1_ps(w), v, load_f32(acc)));
    }
    for (a, v) in acc_rest.iter_mut().zip(v_rest) {
        *a = w.mul_add(half::f16::from_bits(*v).to_f32_const(), *a);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn axpy_f32(acc: &mut [f32], w: f32, v: &[f32]) {
    let ((acc, acc_rest), (v, v_rest)) = (acc.as_chunks_mut::<8>(), v.as_chunks::<8>());
    for (acc, v) in acc.iter_mut().zip(v) {
        store_f32(acc, _mm256_fmadd_ps(_mm256_set1_ps(w), load_f32(v), load_f32(acc)));
    }
    for (a, v) in acc_rest.iter_mut().zip(v_rest) {
        *a = w.mul_add(*v, *a);
    }
}

/// As [`axpy_f32`], with each product rounded before it is added.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn add_scaled_f32(acc: &mut [f32], w: f32, v: &[f32]) {
    let ((acc, acc_rest), (v, v_rest)) = (acc.as_chunks_mut::<8>(), v.as_chunks::<8>());
    for (acc, v) in acc.iter_mut().zip(v) {
        store_f32(acc, _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(w), load_f32(v)), load_f32(acc)));
    }
    for (a, v) in acc_rest.iter_mut().zip(v_rest) {
        *a += w * *v;
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn f32_to_f16(src: &[f32], out: &mut [u16]) {
    let ((src, src_rest), (out, out_rest)) = (src.as_chunks::<8>(), out.as_chunks_mut::<8>());
    for (x, out) in src.iter().zip(out) {
        let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(load_f32(x));
        // SAFETY: room for 16 bytes; the store needs no alignment.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), halves) };
    }
    for (x, out) in src_rest.iter().zip(out_rest) {
        *out = half::f16::from_f32_const(*x).to_bits();
    }
}
