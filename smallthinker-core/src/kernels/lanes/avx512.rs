//! AVX-512 with the byte dot product: a group is two registers of codes, two quads of all eight blocks in each.

use std::arch::x86_64::*;

use super::{LaneGroup, LaneMatrix, LanesJob, PickedRows};
use crate::kernels::avx2::{half_scales_at, load, load_f32, prefetch, sum};
use crate::tensor::packed::{GROUP_CODES, GROUP_SCALES};

/// Rows at once: enough independent sums to hide the latency of the additions.
const ROWS: usize = 4;
/// How many rows ahead of the arithmetic weights are requested from memory.
const AHEAD: usize = 4;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::kernels) fn lanes(job: LanesJob<'_>) {
    let LanesJob { matrix, rows, x, out } = job;
    match rows {
        PickedRows::From(first) => each_row(&matrix, x, out, |i| Some(first + i)),
        PickedRows::List(list) => each_row(&matrix, x, out, |i| list.get(i).map(|&row| row as usize)),
    }
}

/// `row(i)` is the row of output `i`; for `i` behind the last output, what will probably be wanted next.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn each_row(matrix: &LaneMatrix<'_>, x: &[LaneGroup], out: &mut [f32], row: impl Fn(usize) -> Option<usize>) {
    let (blocks, rest) = out.as_chunks_mut::<ROWS>();
    let done = blocks.len() * ROWS;
    for (b, out) in blocks.iter_mut().enumerate() {
        *out = some_rows::<ROWS>(matrix, x, b * ROWS, &row);
    }
    for (i, out) in rest.iter_mut().enumerate() {
        [*out] = some_rows::<1>(matrix, x, done + i, &row);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn some_rows<const R: usize>(
    matrix: &LaneMatrix<'_>,
    x: &[LaneGroup],
    i: usize,
    row: impl Fn(usize) -> Option<usize>,
) -> [f32; R] {
    const { assert!(GROUP_CODES == 128 && GROUP_SCALES == 16) };
    let none = (&[][..], &[][..]);
    let rows: [_; R] = std::array::from_fn(|r| row(i + r).and_then(|row| matrix.row(row)).unwrap_or(none));
    let ahead: [_; R] = std::array::from_fn(|r| row(i + r + AHEAD).map(|row| row * matrix.groups));
    let mut acc = [_mm256_setzero_ps(); R];
    for (g, x) in x.iter().enumerate() {
        let q = x.q.as_flattened().as_flattened().as_chunks::<64>().0;
        let q: [__m512i; 4] = std::array::from_fn(|j| load_512(&q[j]));
        let (offset, scale) = (_mm512_zextsi256_si512(load(&x.offset)), load_f32(&x.scale));
        for r in 0..R {
            let (Some(codes), Some(scales)) = (rows[r].0.get(g), rows[r].1.get(g)) else { continue };
            if let Some(at) = ahead[r] {
                prefetch(matrix.codes.as_ptr().wrapping_add(at + g));
                if g % 4 == 0 {
                    prefetch(
                        matrix.scales.as_ptr().cast::<[u8; 64]>().wrapping_byte_add((at + g) * GROUP_SCALES),
                    );
                }
            }
            let [a, b] = [0, 1].map(|j| load_512(&codes.as_chunks::<64>().0[j]));
            let nibbles = _mm512_set1_epi8(15);
            let high = |v| _mm512_and_si512(_mm512_srli_epi16::<4>(v), nibbles);
            // Two chains of two: four products per lane, at most 16 · 15 · 127 and the offset.
            let mut even = _mm512_dpbusd_epi32(offset, _mm512_and_si512(a, nibbles), q[0]);
            let mut odd = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(b, nibbles), q[1]);
            even = _mm512_dpbusd_epi32(even, high(a), q[2]);
            odd = _mm512_dpbusd_epi32(odd, high(b), q[3]);
            let both = _mm512_add_epi32(even, odd);
            let dots = _mm256_add_epi32(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64::<1>(both));
            let step = _mm256_mul_ps(half_scales_at(scales), scale);
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), step, acc[r]);
        }
    }
    acc.map(|lanes| sum(lanes))
}

/// Loads 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load_512<T>(x: &[T; 64]) -> __m512i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: 64 initialised bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}
