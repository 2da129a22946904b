//! F32 weights with AVX-512: several rows times several vectors. Sums have the order, and so the bits, of the AVX2
//! set: its two registers are the halves of one here.

use std::arch::x86_64::*;

use crate::kernels::{LEAST_ROWS, TILE_TOKENS, Tile};
use crate::tensor::block::{cast, padded};

/// Sixteen weights as stored.
type Sixteen = [u8; 64];

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn tile(t: Tile<'_>) {
    match t.acts.len() {
        1 => vectors::<1>(t),
        2 => vectors::<2>(t),
        3 => vectors::<3>(t),
        _ => vectors::<TILE_TOKENS>(t),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn vectors<const T: usize>(mut t: Tile<'_>) {
    let mut row = 0;
    for rows in t.rows.chunks(LEAST_ROWS * t.row_bytes) {
        match rows.len() / t.row_bytes {
            1 => some::<1, T>(&mut t, rows, row),
            2 => some::<2, T>(&mut t, rows, row),
            3 => some::<3, T>(&mut t, rows, row),
            4 => some::<4, T>(&mut t, rows, row),
            5 => some::<5, T>(&mut t, rows, row),
            _ => some::<LEAST_ROWS, T>(&mut t, rows, row),
        }
        row += LEAST_ROWS;
    }
}

/// `R` rows, the first of which is number `first`; sixteen elements at a time, the last ones padded with zeros on both
/// sides.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn some<const R: usize, const T: usize>(t: &mut Tile<'_>, rows: &[u8], first: usize) {
    let mut weights: [(&[Sixteen], &[u8]); R] = [(&[], &[]); R];
    for (place, row) in weights.iter_mut().zip(rows.chunks_exact(t.row_bytes)) {
        *place = cast::<Sixteen>(row);
    }
    let mut acts: [(&[[f32; 16]], &[f32]); T] = [(&[], &[]); T];
    for (place, act) in acts.iter_mut().zip(t.acts) {
        *place = act.values.as_chunks();
    }
    // All of one length, which the loop below need not check again.
    let count = t.row_bytes / size_of::<Sixteen>();
    if weights.iter().any(|w| w.0.len() != count) || acts.iter().any(|a| a.0.len() < count) {
        return;
    }
    let mut acc = [[_mm512_setzero_ps(); T]; R];
    for i in 0..count {
        let mut x = [_mm512_setzero_ps(); T];
        for (x, act) in x.iter_mut().zip(&acts) {
            *x = load(&act.0[i]);
        }
        for (acc, weights) in acc.iter_mut().zip(&weights) {
            let w = load_weights(&weights.0[i]);
            for (acc, x) in acc.iter_mut().zip(x) {
                *acc = _mm512_fmadd_ps(w, x, *acc);
            }
        }
    }
    for (r, (acc, weights)) in acc.iter_mut().zip(&weights).enumerate() {
        if !weights.1.is_empty() {
            let w = load_weights(&padded::<Sixteen>(weights.1));
            for (acc, act) in acc.iter_mut().zip(&acts) {
                let mut x = [0.0; 16];
                for (x, value) in x.iter_mut().zip(act.1) {
                    *x = *value;
                }
                *acc = _mm512_fmadd_ps(w, load(&x), *acc);
            }
        }
        let mut sums = [0.0; T];
        for (out, acc) in sums.iter_mut().zip(acc) {
            *out = sum(*acc);
        }
        t.put(first + r, &sums);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load(x: &[f32; 16]) -> __m512 {
    // SAFETY: sixteen floats; the load needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load_weights(x: &Sixteen) -> __m512 {
    // SAFETY: 64 initialised bytes; the load needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
}

/// The sum of the lanes: of the halves first, then as the AVX2 set does.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn sum(x: __m512) -> f32 {
    let high = _mm512_extractf32x8_ps::<1>(x);
    crate::kernels::avx2::sum(_mm256_add_ps(_mm512_castps512_ps256(x), high))
}
