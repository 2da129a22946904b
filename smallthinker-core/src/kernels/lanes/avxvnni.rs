//! AVX-VNNI, the byte dot product for 256-bit registers: a group is four registers of codes, one quad of all eight
//! blocks in each half byte.

use std::arch::x86_64::*;

use super::avx2::{quad, request};
use super::{LaneGroup, LaneMatrix, LanesJob, Row};
use crate::kernels::avx2::{half_scales_at, load, load_f32, sum};
use crate::tensor::packed::{GROUP_CODES, GROUP_SCALES};

/// How many rows ahead of the arithmetic weights are requested from memory.
const AHEAD: usize = 4;

#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::kernels) fn lanes(job: LanesJob<'_>) {
    let LanesJob { matrix, rows, x, out } = job;
    for (i, out) in out.iter_mut().enumerate() {
        *out = row(&matrix, matrix.picked(rows, i), matrix.first_group(rows, i + AHEAD), x);
    }
}

/// One row, while the groups from `ahead` on are requested. One at a time reads memory in one direction; with two or
/// four the CPU's own prefetching gets 10 to 15 % less of it.
#[inline]
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
fn row(matrix: &LaneMatrix<'_>, (codes, scales): Row<'_>, ahead: Option<usize>, x: &[LaneGroup]) -> f32 {
    const { assert!(GROUP_CODES == 128 && GROUP_SCALES == 16) };
    let mut acc = _mm256_setzero_ps();
    for (g, ((codes, scales), x)) in codes.iter().zip(scales).zip(x).enumerate() {
        let (offset, scale) = (load(&x.offset), load_f32(&x.scale));
        request(matrix, ahead, g);
        // Eight times four products per lane: at most 32 · 15 · 127 and the offset.
        let mut dots = offset;
        for (k, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
            let (codes, nibbles) = (load(codes), _mm256_set1_epi8(15));
            dots = _mm256_dpbusd_avx_epi32(dots, _mm256_and_si256(codes, nibbles), quad(x, k));
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibbles);
            dots = _mm256_dpbusd_avx_epi32(dots, high, quad(x, k + 4));
        }
        let step = _mm256_mul_ps(half_scales_at(scales), scale);
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), step, acc);
    }
    sum(acc)
}
