//! AVX2: a group is four registers of codes, one quad of all eight blocks in each half byte.

use std::arch::x86_64::*;

use super::{LaneGroup, LaneMatrix, LanesJob, Row};
use crate::kernels::avx2::{half_scales_at, load, load_f32, prefetch, prefetch_line, sum};
use crate::tensor::packed::{GROUP_CODES, GROUP_SCALES};

/// How many rows ahead of the arithmetic weights are requested from memory.
const AHEAD: usize = 4;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn lanes(job: LanesJob<'_>) {
    let LanesJob { matrix, rows, x, out } = job;
    for (i, out) in out.iter_mut().enumerate() {
        *out = row(&matrix, matrix.picked(rows, i), matrix.first_group(rows, i + AHEAD), x);
    }
}

/// One row, while the groups from `ahead` on are requested. One at a time reads memory in one direction; with two or
/// four the CPU's own prefetching gets 10 to 15 % less of it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn row(matrix: &LaneMatrix<'_>, (codes, scales): Row<'_>, ahead: Option<usize>, x: &[LaneGroup]) -> f32 {
    const { assert!(GROUP_CODES == 128 && GROUP_SCALES == 16) };
    let mut acc = _mm256_setzero_ps();
    for (g, ((codes, scales), x)) in codes.iter().zip(scales).zip(x).enumerate() {
        let (offset, scale) = (load(&x.offset), load_f32(&x.scale));
        request(matrix, ahead, g);
        // Eight products of pairs per 16-bit lane: at most 8 · 2 · 15 · 127 = 30480, no overflow.
        let mut pairs = _mm256_setzero_si256();
        for (k, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
            let (codes, nibbles) = (load(codes), _mm256_set1_epi8(15));
            let (low, high) = (_mm256_and_si256(codes, nibbles), _mm256_srli_epi16::<4>(codes));
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(low, quad(x, k)));
            let high = _mm256_and_si256(high, nibbles);
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(high, quad(x, k + 4)));
        }
        let dots = _mm256_add_epi32(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), offset);
        let step = _mm256_mul_ps(half_scales_at(scales), scale);
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), step, acc);
    }
    sum(acc)
}

/// Quad `k` of all eight blocks.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quad(x: &LaneGroup, k: usize) -> __m256i {
    match x.q.get(k).and_then(|quad| quad.as_flattened().first_chunk::<32>()) {
        Some(quad) => load(quad),
        None => _mm256_setzero_si256(),
    }
}

/// Asks for group `g` of a row that will be multiplied soon, whose first group has the number `first`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn request(matrix: &LaneMatrix<'_>, first: Option<usize>, g: usize) {
    let Some(first) = first else { return };
    prefetch(matrix.codes.as_ptr().wrapping_add(first + g));
    // A line has the scales of four groups.
    if g.is_multiple_of(4) {
        prefetch_line(matrix.scales.as_ptr().wrapping_add(first + g));
    }
}
