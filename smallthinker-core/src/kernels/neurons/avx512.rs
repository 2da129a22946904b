//! AVX-512 with the byte dot product: four neurons are interleaved so that each 32-bit lane is one output.

use std::arch::x86_64::*;

use super::{NeuronBlock, NeuronsJob};
use crate::kernels::avx2::{load, prefetch, prefetch_line};
use crate::tensor::packed::{BLOCK, BLOCK_SCALES, NEURON_CODES, TILE};

/// How many blocks ahead of the arithmetic weights are requested from memory.
const AHEAD: usize = 3;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::kernels) fn neurons(job: NeuronsJob<'_>) {
    let NeuronsJob { tile, neurons, out } = job;
    // By block number modulo 8. They stay in the first-level cache; loads and stores cost nothing beside the
    // arithmetic.
    let mut sums = [[_mm512_setzero_ps(); 8]; 8];
    for (b, (codes, block)) in tile.iter().zip(neurons).enumerate() {
        request(tile, neurons, b + AHEAD);
        if !block.is_zero() {
            add_block(&mut sums[b % 8], codes, block);
        }
    }
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let add = |a, b| _mm512_add_ps(a, b);
        let [a, b, c, d, e, f, g, h] = sums.map(|s| s[i]);
        let sum = add(add(add(a, e), add(c, g)), add(add(b, f), add(d, h)));
        // SAFETY: room for sixteen floats; the store needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// Requests the weights of block `b` from memory; behind the last block of a tile comes the first of the next.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn request(tile: &[[u8; BLOCK]], neurons: &[NeuronBlock], b: usize) {
    let Some(block) = neurons.get(b % neurons.len()).filter(|block| !block.is_zero()) else { return };
    let at = tile.as_ptr().wrapping_add(b);
    prefetch(at.cast::<[u8; BLOCK_SCALES]>());
    let codes = at.wrapping_byte_add(BLOCK_SCALES).cast::<[u8; NEURON_CODES]>();
    for &index in block.index.iter().take(block.active()) {
        prefetch_line(codes.wrapping_add(usize::from(index)));
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn add_block(acc: &mut [__m512; 8], tile: &[u8; BLOCK], block: &NeuronBlock) {
    const { assert!(TILE == 8 * 16 && NEURON_CODES == 64) };
    let (scales, codes) = tile.split_at(BLOCK_SCALES);
    let codes = codes.as_chunks::<NEURON_CODES>().0;
    let mut dots = [_mm512_set1_epi32(block.offset); 8];
    for (index, q) in block.quads() {
        let q = _mm512_set1_epi32(i32::from_le_bytes(q.map(|q| q as u8)));
        let [a, b, c, d] = index.map(|i| load_512(&codes[usize::from(i % 32)]));
        let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
        let quads = [
            _mm512_unpacklo_epi16(ab, cd),
            _mm512_unpackhi_epi16(ab, cd),
            _mm512_unpacklo_epi16(ab_high, cd_high),
            _mm512_unpackhi_epi16(ab_high, cd_high),
        ];
        for (m, quad) in quads.into_iter().enumerate() {
            let nibbles = _mm512_set1_epi8(15);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(quad), nibbles);
            dots[m] = _mm512_dpbusd_epi32(dots[m], _mm512_and_si512(quad, nibbles), q);
            dots[m + 4] = _mm512_dpbusd_epi32(dots[m + 4], high, q);
        }
    }
    let scale = _mm512_set1_ps(block.scale);
    for ((acc, dots), d) in acc.iter_mut().zip(dots).zip(scales.as_chunks::<32>().0) {
        let step = _mm512_mul_ps(_mm512_cvtph_ps(load(d)), scale);
        *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), step, *acc);
    }
}

/// Loads 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load_512(x: &[u8; 64]) -> __m512i {
    // SAFETY: 64 initialised bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}
