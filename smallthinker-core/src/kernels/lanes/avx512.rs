//! AVX-512 with the byte dot product: a group is two registers of codes, two quads of all eight blocks in each.

use std::arch::x86_64::*;

use super::avx2::request;
use super::{LaneGroup, LaneMatrix, LanesJob, Row};
use crate::kernels::avx2::{half_scales_at, load, load_f32, sum};
use crate::tensor::packed::{GROUP_CODES, GROUP_SCALES};

/// `AHEAD` is how many rows ahead of the arithmetic weights are requested from memory.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::kernels) fn lanes<const AHEAD: usize>(job: LanesJob<'_>) {
    let LanesJob { matrix, rows, x, out } = job;
    for (i, out) in out.iter_mut().enumerate() {
        *out = row(&matrix, matrix.picked(rows, i), matrix.first_group(rows, i + AHEAD), x);
    }
}

/// One row, while the groups from `ahead` on are requested. One at a time reads memory in one direction; with two or
/// four the CPU's own prefetching gets 10 to 15 % less of it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn row(matrix: &LaneMatrix<'_>, (codes, scales): Row<'_>, ahead: Option<usize>, x: &[LaneGroup]) -> f32 {
    const { assert!(GROUP_CODES == 128 && GROUP_SCALES == 16) };
    let mut acc = _mm256_setzero_ps();
    for (g, ((codes, scales), x)) in codes.iter().zip(scales).zip(x).enumerate() {
        let [q0, q1, q2, q3] = x.q.as_flattened().as_flattened().as_chunks::<64>().0 else { break };
        let q = [load_512(q0), load_512(q1), load_512(q2), load_512(q3)];
        let (offset, scale) = (_mm512_zextsi256_si512(load(&x.offset)), load_f32(&x.scale));
        request(matrix, ahead, g);
        let [a, b] = codes.as_chunks::<64>().0 else { break };
        let (a, b, nibbles) = (load_512(a), load_512(b), _mm512_set1_epi8(15));
        // Two chains of two: four products per lane, at most 16 · 15 · 127 and the offset.
        let mut even = _mm512_dpbusd_epi32(offset, _mm512_and_si512(a, nibbles), q[0]);
        let mut odd = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(b, nibbles), q[1]);
        even = _mm512_dpbusd_epi32(even, _mm512_and_si512(_mm512_srli_epi16::<4>(a), nibbles), q[2]);
        odd = _mm512_dpbusd_epi32(odd, _mm512_and_si512(_mm512_srli_epi16::<4>(b), nibbles), q[3]);
        let both = _mm512_add_epi32(even, odd);
        let dots = _mm256_add_epi32(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64::<1>(both));
        let step = _mm256_mul_ps(half_scales_at(scales), scale);
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), step, acc);
    }
    sum(acc)
}

/// Loads 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load_512<T>(x: &[T; 64]) -> __m512i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: 64 initialised bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}
