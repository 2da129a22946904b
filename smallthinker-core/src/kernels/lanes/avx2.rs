//! AVX2: a group is four registers of codes, one quad of all eight blocks in each half byte.

use std::arch::x86_64::*;

use super::{LaneGroup, LaneMatrix, LanesJob, PickedRows, Row};
use crate::kernels::avx2::{half_scales_at, load, load_f32, prefetch, sum};
use crate::tensor::packed::{GROUP_CODES, GROUP_SCALES};

const ROWS: usize = 2;
/// How many rows ahead of the arithmetic weights are requested from memory.
const AHEAD: usize = 4;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn lanes(job: LanesJob<'_>) {
    let LanesJob { matrix, rows, x, out } = job;
    let (blocks, rest) = out.as_chunks_mut::<ROWS>();
    let done = blocks.len() * ROWS;
    for (b, out) in blocks.iter_mut().enumerate() {
        *out = some_rows::<ROWS>(&matrix, rows, x, b * ROWS);
    }
    for (i, out) in rest.iter_mut().enumerate() {
        [*out] = some_rows::<1>(&matrix, rows, x, done + i);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn some_rows<const R: usize>(
    matrix: &LaneMatrix<'_>,
    rows: PickedRows<'_>,
    x: &[LaneGroup],
    i: usize,
) -> [f32; R] {
    const { assert!(GROUP_CODES == 128 && GROUP_SCALES == 16) };
    let mut places: [Row<'_>; R] = [(&[], &[]); R];
    let mut ahead = [None; R];
    for r in 0..R {
        places[r] = matrix.picked(rows, i + r);
        ahead[r] = matrix.first_group(rows, i + r + AHEAD);
    }
    let mut acc = [_mm256_setzero_ps(); R];
    for (g, x) in x.iter().enumerate() {
        let (offset, scale) = (load(&x.offset), load_f32(&x.scale));
        for r in 0..R {
            let (Some(codes), Some(scales)) = (places[r].0.get(g), places[r].1.get(g)) else { continue };
            if let Some(at) = ahead[r] {
                prefetch(matrix.codes.as_ptr().wrapping_add(at + g));
                if g % 4 == 0 {
                    prefetch(
                        matrix.scales.as_ptr().cast::<[u8; 64]>().wrapping_byte_add((at + g) * GROUP_SCALES),
                    );
                }
            }
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
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), step, acc[r]);
        }
    }
    let mut sums = [0.0; R];
    for r in 0..R {
        sums[r] = sum(acc[r]);
    }
    sums
}

/// Quad `k` of all eight blocks.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn quad(x: &LaneGroup, k: usize) -> __m256i {
    match x.q.get(k).and_then(|quad| quad.as_flattened().first_chunk::<32>()) {
        Some(quad) => load(quad),
        None => _mm256_setzero_si256(),
    }
}
