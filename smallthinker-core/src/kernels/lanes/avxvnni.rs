//! AVX-VNNI, the byte dot product for 256-bit registers: a group is four registers of codes, one quad of all eight
//! blocks in each half byte.

use std::arch::x86_64::*;

use super::{LaneGroup, LaneMatrix, LanesJob, PickedRows};
use crate::kernels::avx2::{half_scales_at, load, load_f32, prefetch, sum};
use crate::tensor::packed::{GROUP_CODES, GROUP_SCALES};

/// Rows at once: the dot products of one are a chain, those of others fill its gaps.
const ROWS: usize = 4;
/// How many rows ahead of the arithmetic weights are requested from memory.
const AHEAD: usize = 4;

#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::kernels) fn lanes(job: LanesJob<'_>) {
    let LanesJob { matrix, rows, x, out } = job;
    match rows {
        PickedRows::From(first) => each_row(&matrix, x, out, |i| Some(first + i)),
        PickedRows::List(list) => each_row(&matrix, x, out, |i| list.get(i).map(|&row| row as usize)),
    }
}

/// `row(i)` is the row of output `i`; for `i` behind the last output, what will probably be wanted next.
#[inline]
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
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
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
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
        let (offset, scale) = (load(&x.offset), load_f32(&x.scale));
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
            // Eight times four products per lane: at most 32 · 15 · 127 and the offset.
            let mut dots = offset;
            for (k, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
                let (codes, nibbles) = (load(codes), _mm256_set1_epi8(15));
                let quad =
                    |k: usize| load(x.q[k].as_flattened().as_chunks::<32>().0.first().unwrap_or(&[0; 32]));
                dots = _mm256_dpbusd_avx_epi32(dots, _mm256_and_si256(codes, nibbles), quad(k));
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibbles);
                dots = _mm256_dpbusd_avx_epi32(dots, high, quad(k + 4));
            }
            let step = _mm256_mul_ps(half_scales_at(scales), scale);
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), step, acc[r]);
        }
    }
    acc.map(|lanes| sum(lanes))
}
