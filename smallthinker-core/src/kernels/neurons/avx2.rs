//! AVX2. Q4_0: two neurons are interleaved so that each 16-bit lane is one output. Q8_0: four, and each 32-bit lane is
//! one output.

use std::arch::x86_64::*;

use super::{NeuronBlock, NeuronsJob, Requests, lines};
use crate::kernels::avx2::{half_scales_at, load, prefetch, prefetch_line, store_f32};
use crate::tensor::packed::{BLOCK_Q4_0, BLOCK_Q8_0, BLOCK_SCALES, LINE, TILE};

/// 128 outputs, eight to a register.
pub(super) type Outputs = [__m256; TILE / 8];

#[target_feature(enable = "avx2,fma,f16c")]
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

/// Adds the sums, always in the same order.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn store_sums(sums: &[Outputs; 8], out: &mut [f32; TILE]) {
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let add = |a, b| _mm256_add_ps(a, b);
        // Not `sums.map`, which copies all of them first.
        let [a, b, c, d, e, f, g, h] = std::array::from_fn(|n| sums[n][i]);
        store_f32(out, add(add(add(a, e), add(c, g)), add(add(b, f), add(d, h))));
    }
}

/// Requests from memory what will be used some time after block `b`: the scales of a later block, and the codes of as many fours
/// of neurons as this one has. All at once: between the block's products they come a tenth slower.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn request<const B: usize>(requests: &mut Requests<'_>, b: usize, block: &NeuronBlock) {
    if let Some(scales) = requests.scales::<B>(b) {
        prefetch(scales);
    }
    for _ in 0..requests.due(block.quads().len()) {
        for codes in requests.codes().into_iter().flatten() {
            for line in 0..lines(B) {
                prefetch_line(codes.wrapping_add(line * LINE));
            }
        }
    }
}

/// Adds a block's products for the outputs in half `HALF` of each line: outputs `16 m + 8 HALF ..` for `m` in 0..8.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_half<const B: usize, const HALF: usize>(acc: &mut Outputs, tile: &[u8; B], block: &NeuronBlock) {
    let (scales, codes) = tile.split_at(BLOCK_SCALES);
    let dots = if B == BLOCK_Q8_0 {
        byte_dots::<HALF>(codes.as_chunks().0, block)
    } else {
        nibble_dots::<HALF>(codes.as_chunks().0, block)
    };
    scale_half::<HALF>(acc, scales, dots, block.scale);
}

/// Adds the products of half `HALF` times what they are worth.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn scale_half<const HALF: usize>(
    acc: &mut Outputs,
    scales: &[u8],
    dots: [__m256i; 8],
    scale: f32,
) {
    let scale = _mm256_set1_ps(scale);
    let scales = scales.as_chunks::<16>().0;
    for (m, dots) in dots.into_iter().enumerate() {
        let at = 2 * m + HALF;
        let step = _mm256_mul_ps(half_scales_at(&scales[at]), scale);
        acc[at] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), step, acc[at]);
    }
}

/// Four vectors' bytes of the same number side by side, within 128-bit lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn interleave([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
    [
        _mm256_unpacklo_epi16(ab, cd),
        _mm256_unpackhi_epi16(ab, cd),
        _mm256_unpacklo_epi16(ab_high, cd_high),
        _mm256_unpackhi_epi16(ab_high, cd_high),
    ]
}

/// Q8_0. The sign moves from the weight to the activation, which can be negated; pairs reach 2 · 128 · 127 = 32512.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn byte_dots<const HALF: usize>(codes: &[[u8; 2 * LINE]], block: &NeuronBlock) -> [__m256i; 8] {
    let codes = |i: u8, line: usize| load(&codes[usize::from(i % 32)].as_chunks::<32>().0[2 * line + HALF]);
    let mut dots = [_mm256_setzero_si256(); 8];
    for (index, q) in block.quads() {
        let q = _mm256_set1_epi32(i32::from_le_bytes(q.map(|q| q as u8)));
        for line in 0..2 {
            for (m, quad) in interleave(index.map(|i| codes(i, line))).into_iter().enumerate() {
                // Back from code plus 128.
                let weights = _mm256_xor_si256(quad, _mm256_set1_epi8(-128));
                let signed = _mm256_sign_epi8(q, weights);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
                let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                dots[4 * line + m] = _mm256_add_epi32(dots[4 * line + m], fours);
            }
        }
    }
    dots
}

/// Q4_0.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibble_dots<const HALF: usize>(codes: &[[u8; LINE]], block: &NeuronBlock) -> [__m256i; 8] {
    let codes = |i: u8| load(&codes[usize::from(i % 32)].as_chunks::<32>().0[HALF]);
    let mut dots = [_mm256_set1_epi32(block.offset(BLOCK_Q4_0)); 8];
    let quads = block.index.as_chunks::<16>().0.iter().zip(block.q.as_chunks::<16>().0);
    for (part, (index, q)) in quads.enumerate() {
        let left = block.active().saturating_sub(16 * part).min(16);
        if left == 0 {
            break;
        }
        // Eight pairs of products per 16-bit lane: at most 8 · 2 · 15 · 127 = 30480, no overflow.
        let mut low = [_mm256_setzero_si256(); 2];
        let mut high = low;
        let pairs = index.as_chunks::<2>().0.iter().zip(q.as_chunks::<2>().0);
        for (index, q) in pairs.take(left.div_ceil(2)) {
            let q = _mm256_set1_epi16(i16::from_le_bytes(q.map(|q| q as u8)));
            let [a, b] = index.map(codes);
            let both = [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)];
            for (i, both) in both.into_iter().enumerate() {
                let nibbles = _mm256_set1_epi8(15);
                let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibbles);
                let lower = _mm256_and_si256(both, nibbles);
                low[i] = _mm256_add_epi16(low[i], _mm256_maddubs_epi16(lower, q));
                high[i] = _mm256_add_epi16(high[i], _mm256_maddubs_epi16(upper, q));
            }
        }
        for (at, words) in [(0, low), (4, high)] {
            for (i, words) in words.into_iter().enumerate() {
                let sign = _mm256_srai_epi16::<15>(words);
                let (even, odd) = (_mm256_unpacklo_epi16(words, sign), _mm256_unpackhi_epi16(words, sign));
                dots[at + 2 * i] = _mm256_add_epi32(dots[at + 2 * i], even);
                dots[at + 2 * i + 1] = _mm256_add_epi32(dots[at + 2 * i + 1], odd);
            }
        }
    }
    dots
}
