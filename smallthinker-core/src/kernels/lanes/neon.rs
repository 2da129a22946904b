//! NEON with the byte dot product: a group is eight registers of codes, one quad of four blocks in each half byte.

use std::arch::aarch64::*;

use super::{LaneGroup, LaneMatrix, LanesJob, PickedRows, Row};
use crate::kernels::neon::{dot4, halves_at, load, load_f32, load_i32, load_u8, sum_tree};
use crate::tensor::packed::{GROUP_CODES, GROUP_SCALES};

/// Rows at once: the dot products of one are a chain, those of others fill its gaps.
const ROWS: usize = 2;

#[target_feature(enable = "neon,dotprod")]
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
#[target_feature(enable = "neon,dotprod")]
fn some_rows<const R: usize>(
    matrix: &LaneMatrix<'_>,
    rows: PickedRows<'_>,
    x: &[LaneGroup],
    i: usize,
) -> [f32; R] {
    const { assert!(GROUP_CODES == 128 && GROUP_SCALES == 16) };
    let mut places: [Row<'_>; R] = [(&[], &[]); R];
    for r in 0..R {
        places[r] = matrix.picked(rows, i + r);
    }
    let mut acc = [[vdupq_n_f32(0.0); 2]; R];
    for (g, x) in x.iter().enumerate() {
        let (offset, scale) = (load_i32(&x.offset), load_f32(&x.scale));
        let quads = x.q.as_flattened().as_flattened().as_chunks::<16>().0;
        for r in 0..R {
            let (Some(codes), Some(scales)) = (places[r].0.get(g), places[r].1.get(g)) else { continue };
            // Eight times four products per lane: at most 32 · 15 · 127 and the offset.
            let mut dots = offset;
            for (j, codes) in codes.as_chunks::<16>().0.iter().enumerate() {
                let codes = load_u8(codes);
                let low = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(15)));
                let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(codes));
                // Register `j` holds quads `j / 2` and `j / 2 + 4` of four blocks.
                dots[j % 2] = dot4(dots[j % 2], low, load(&quads[j]));
                dots[j % 2] = dot4(dots[j % 2], high, load(&quads[j + 8]));
            }
            let d = scales.as_chunks::<8>().0;
            for (half, acc) in acc[r].iter_mut().enumerate() {
                let step = vmulq_f32(halves_at(&d[half]), scale[half]);
                *acc = vfmaq_f32(*acc, vcvtq_f32_s32(dots[half]), step);
            }
        }
    }
    let mut sums = [0.0; R];
    for r in 0..R {
        sums[r] = sum_tree(acc[r]);
    }
    sums
}
