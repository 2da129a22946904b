//! AVX-VNNI, the byte dot product for 256-bit registers: four neurons are interleaved so that each 32-bit lane is one
//! output.

use std::arch::x86_64::*;

use super::avx2::{Outputs, interleave, request, scale_half, store_sums};
use super::{NeuronBlock, NeuronsJob, lines};
use crate::kernels::avx2::load;
use crate::tensor::packed::{BLOCK_Q8_0, BLOCK_SCALES, TILE};

#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::kernels) fn neurons<const B: usize>(job: NeuronsJob<'_, B>) {
    let NeuronsJob { tile, neurons, mut requests, out } = job;
    // By block number modulo 8. They stay in the first-level cache.
    let mut sums: [Outputs; 8] = [[_mm256_setzero_ps(); TILE / 8]; 8];
    for (b, (codes, block)) in tile.iter().zip(neurons).enumerate() {
        request::<B>(&mut requests, b, block);
        if !block.is_zero() {
            add_half::<B, 0>(&mut sums[b % 8], codes, block);
            add_half::<B, 1>(&mut sums[b % 8], codes, block);
        }
    }
    store_sums(&sums, out);
}

/// Adds a block's products for the outputs in half `HALF` of each line: outputs `16 m + 8 HALF ..` for `m` in 0..8.
#[inline]
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
fn add_half<const B: usize, const HALF: usize>(acc: &mut Outputs, tile: &[u8; B], block: &NeuronBlock) {
    let (scales, codes) = tile.split_at(BLOCK_SCALES);
    let codes = codes.as_chunks::<32>().0;
    let mut dots = [_mm256_set1_epi32(block.offset(B)); 8];
    for (index, q) in block.quads() {
        let q = _mm256_set1_epi32(i32::from_le_bytes(q.map(|q| q as u8)));
        for line in 0..lines(B) {
            let at = |i: u8| 2 * (lines(B) * usize::from(i % 32) + line) + HALF;
            let quads = interleave(index.map(|i| load(&codes[at(i)])));
            for (m, quad) in quads.into_iter().enumerate() {
                if B == BLOCK_Q8_0 {
                    let m = 4 * line + m;
                    dots[m] = _mm256_dpbusd_avx_epi32(dots[m], quad, q);
                } else {
                    let nibbles = _mm256_set1_epi8(15);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(quad), nibbles);
                    dots[m] = _mm256_dpbusd_avx_epi32(dots[m], _mm256_and_si256(quad, nibbles), q);
                    dots[m + 4] = _mm256_dpbusd_avx_epi32(dots[m + 4], high, q);
                }
            }
        }
    }
    scale_half::<HALF>(acc, scales, dots, block.scale);
}
