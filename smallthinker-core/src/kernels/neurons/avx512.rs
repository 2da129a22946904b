//! AVX-512 with the byte dot product: four neurons are interleaved so that each 32-bit lane is one output.

use std::arch::x86_64::*;

use super::avx2::request;
use super::{NeuronBlock, NeuronsJob, lines};
use crate::kernels::avx2::load;
use crate::tensor::packed::{BLOCK_Q8_0, BLOCK_SCALES, LINE, TILE};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::kernels) fn neurons<const B: usize>(job: NeuronsJob<'_, B>) {
    let NeuronsJob { tile, neurons, mut requests, out } = job;
    // By block number modulo 8. They stay in the first-level cache; loads and stores cost nothing beside the
    // arithmetic.
    let mut sums = [[_mm512_setzero_ps(); 8]; 8];
    for (b, (codes, block)) in tile.iter().zip(neurons).enumerate() {
        request::<B>(&mut requests, b, block);
        if !block.is_zero() {
            add_block(&mut sums[b % 8], codes, block);
        }
    }
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let add = |a, b| _mm512_add_ps(a, b);
        // Not `sums.map`, which copies all of them first.
        let [a, b, c, d, e, f, g, h] = std::array::from_fn(|n| sums[n][i]);
        let sum = add(add(add(a, e), add(c, g)), add(add(b, f), add(d, h)));
        // SAFETY: room for sixteen floats; the store needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn add_block<const B: usize>(acc: &mut [__m512; 8], tile: &[u8; B], block: &NeuronBlock) {
    const { assert!(TILE == 8 * 16 && LINE == 64) };
    let (scales, codes) = tile.split_at(BLOCK_SCALES);
    let codes = codes.as_chunks::<LINE>().0;
    let mut dots = [_mm512_set1_epi32(block.offset(B)); 8];
    for (index, q) in block.quads() {
        let q = _mm512_set1_epi32(i32::from_le_bytes(q.map(|q| q as u8)));
        for line in 0..lines(B) {
            let at = |i: u8| lines(B) * usize::from(i % 32) + line;
            let quads = interleave(index.map(|i| load_512(&codes[at(i)])));
            for (m, quad) in quads.into_iter().enumerate() {
                if B == BLOCK_Q8_0 {
                    let m = 4 * line + m;
                    dots[m] = _mm512_dpbusd_epi32(dots[m], quad, q);
                } else {
                    let nibbles = _mm512_set1_epi8(15);
                    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(quad), nibbles);
                    dots[m] = _mm512_dpbusd_epi32(dots[m], _mm512_and_si512(quad, nibbles), q);
                    dots[m + 4] = _mm512_dpbusd_epi32(dots[m + 4], high, q);
                }
            }
        }
    }
    let scale = _mm512_set1_ps(block.scale);
    for ((acc, dots), d) in acc.iter_mut().zip(dots).zip(scales.as_chunks::<32>().0) {
        let step = _mm512_mul_ps(_mm512_cvtph_ps(load(d)), scale);
        *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), step, *acc);
    }
}

/// Four vectors' bytes of the same number side by side, within 128-bit lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn interleave([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
    [
        _mm512_unpacklo_epi16(ab, cd),
        _mm512_unpackhi_epi16(ab, cd),
        _mm512_unpacklo_epi16(ab_high, cd_high),
        _mm512_unpackhi_epi16(ab_high, cd_high),
    ]
}

/// Loads 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load_512(x: &[u8; 64]) -> __m512i {
    // SAFETY: 64 initialised bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}
