//! AVX-VNNI, the byte dot product for 256-bit registers: four neurons are interleaved so that each 32-bit lane is one
//! output.

use std::arch::x86_64::*;

use super::{NeuronBlock, NeuronsJob};
use crate::kernels::avx2::{half_scales_at, load, prefetch, prefetch_line, store_f32};
use crate::tensor::packed::{BLOCK, BLOCK_SCALES, NEURON_CODES, TILE};

/// How many blocks ahead of the arithmetic weights are requested from memory.
const AHEAD: usize = 3;

/// 128 outputs, eight to a register.
type Outputs = [__m256; TILE / 8];

#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::kernels) fn neurons(job: NeuronsJob<'_>) {
    let NeuronsJob { tile, neurons, out } = job;
    // By block number modulo 8. They stay in the first-level cache.
    let mut sums: [Outputs; 8] = [[_mm256_setzero_ps(); TILE / 8]; 8];
    for (b, (codes, block)) in tile.iter().zip(neurons).enumerate() {
        request(tile, neurons, b + AHEAD);
        if !block.is_zero() {
            add_half::<0>(&mut sums[b % 8], codes, block);
            add_half::<1>(&mut sums[b % 8], codes, block);
        }
    }
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let add = |a, b| _mm256_add_ps(a, b);
        let [a, b, c, d, e, f, g, h] = sums.map(|s| s[i]);
        store_f32(out, add(add(add(a, e), add(c, g)), add(add(b, f), add(d, h))));
    }
}

/// Requests the weights of block `b` from memory; behind the last block of a tile comes the first of the next.
#[inline]
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
fn request(tile: &[[u8; BLOCK]], neurons: &[NeuronBlock], b: usize) {
    let Some(block) = neurons.get(b % neurons.len()).filter(|block| !block.is_zero()) else { return };
    let at = tile.as_ptr().wrapping_add(b);
    prefetch(at.cast::<[u8; BLOCK_SCALES]>());
    let codes = at.wrapping_byte_add(BLOCK_SCALES).cast::<[u8; NEURON_CODES]>();
    for &index in block.index.iter().take(block.active()) {
        prefetch_line(codes.wrapping_add(usize::from(index)));
    }
}

/// Adds a block's products for the outputs in half `HALF` of each neuron's bytes: outputs `16 m + 8 HALF ..` for `m` in
/// 0..8.
#[inline]
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
fn add_half<const HALF: usize>(acc: &mut Outputs, tile: &[u8; BLOCK], block: &NeuronBlock) {
    let (scales, codes) = tile.split_at(BLOCK_SCALES);
    let codes = codes.as_chunks::<NEURON_CODES>().0;
    let codes = |i: u8| load(&codes[usize::from(i % 32)].as_chunks::<32>().0[HALF]);
    let mut dots = [_mm256_set1_epi32(block.offset); 8];
    for (index, q) in block.quads() {
        let q = _mm256_set1_epi32(i32::from_le_bytes(q.map(|q| q as u8)));
        let [a, b, c, d] = index.map(codes);
        let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
        let quads = [
            _mm256_unpacklo_epi16(ab, cd),
            _mm256_unpackhi_epi16(ab, cd),
            _mm256_unpacklo_epi16(ab_high, cd_high),
            _mm256_unpackhi_epi16(ab_high, cd_high),
        ];
        for (m, quad) in quads.into_iter().enumerate() {
            let nibbles = _mm256_set1_epi8(15);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(quad), nibbles);
            dots[m] = _mm256_dpbusd_avx_epi32(dots[m], _mm256_and_si256(quad, nibbles), q);
            dots[m + 4] = _mm256_dpbusd_avx_epi32(dots[m + 4], high, q);
        }
    }
    let scale = _mm256_set1_ps(block.scale);
    let scales = scales.as_chunks::<16>().0;
    for (m, dots) in dots.into_iter().enumerate() {
        let at = 2 * m + HALF;
        let step = _mm256_mul_ps(half_scales_at(&scales[at]), scale);
        acc[at] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), step, acc[at]);
    }
}
