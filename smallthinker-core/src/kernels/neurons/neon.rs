//! NEON with the byte dot product: four neurons are interleaved so that each 32-bit lane is one output.

use std::arch::aarch64::*;

use super::{NeuronBlock, NeuronsJob, lines};
use crate::kernels::neon::{dot4, halves_at, load_u8, store_four};
use crate::tensor::packed::{BLOCK_Q8_0, BLOCK_SCALES, TILE};

/// 128 outputs, four to a register.
type Outputs = [float32x4_t; TILE / 4];

#[target_feature(enable = "neon,dotprod")]
pub(in crate::kernels) fn neurons<const B: usize>(job: NeuronsJob<'_, B>) {
    let NeuronsJob { tile, neurons, out, .. } = job;
    // By block number modulo 8. They stay in the first-level cache.
    let mut sums: [Outputs; 8] = [[vdupq_n_f32(0.0); TILE / 4]; 8];
    for (b, (codes, block)) in tile.iter().zip(neurons).enumerate() {
        if !block.is_zero() {
            (0..4).for_each(|part| add_part(&mut sums[b % 8], codes, block, part));
        }
    }
    for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let add = |a, b| vaddq_f32(a, b);
        // Not `sums.map`, which copies all of them first.
        let [a, b, c, d, e, f, g, h] = std::array::from_fn(|n| sums[n][i]);
        store_four(out, add(add(add(a, e), add(c, g)), add(add(b, f), add(d, h))));
    }
}

/// Adds a block's products for the outputs in quarter `part` of each line: outputs `16 m + 4 part ..` for `m` in 0..8.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_part<const B: usize>(acc: &mut Outputs, tile: &[u8; B], block: &NeuronBlock, part: usize) {
    const { assert!(TILE == 8 * 16) };
    let (scales, codes) = tile.split_at(BLOCK_SCALES);
    let codes = codes.as_chunks::<16>().0;
    // Bytes become weights again below, as both sides of this set's products are signed.
    let offset = if B == BLOCK_Q8_0 { 0 } else { block.offset(B) };
    let mut dots = [vdupq_n_s32(offset); 8];
    for (index, q) in block.quads() {
        let q = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(q.map(|q| q as u8))));
        for line in 0..lines(B) {
            let at = |i: u8| 4 * (lines(B) * usize::from(i % 32) + line) + part % 4;
            let quads = interleave(index.map(|i| load_u8(&codes[at(i)])));
            for (m, quad) in quads.into_iter().enumerate() {
                if B == BLOCK_Q8_0 {
                    let m = 4 * line + m;
                    dots[m] = dot4(dots[m], vreinterpretq_s8_u8(veorq_u8(quad, vdupq_n_u8(0x80))), q);
                } else {
                    let low = vreinterpretq_s8_u8(vandq_u8(quad, vdupq_n_u8(15)));
                    let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(quad));
                    dots[m] = dot4(dots[m], low, q);
                    dots[m + 4] = dot4(dots[m + 4], high, q);
                }
            }
        }
    }
    let scales = scales.as_chunks::<8>().0;
    for (m, dots) in dots.into_iter().enumerate() {
        let at = 4 * m + part % 4;
        let step = vmulq_n_f32(halves_at(&scales[at]), block.scale);
        acc[at] = vfmaq_f32(acc[at], vcvtq_f32_s32(dots), step);
    }
}

/// Sixteen groups of the four vectors' bytes of the same number, in order.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn interleave([a, b, c, d]: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    let pairs = |x, y| [vzip1q_u8(x, y), vzip2q_u8(x, y)].map(|v| vreinterpretq_u16_u8(v));
    let (ab, cd) = (pairs(a, b), pairs(c, d));
    let [x, y] = [0, 1].map(|i| [vzip1q_u16(ab[i], cd[i]), vzip2q_u16(ab[i], cd[i])]);
    [x[0], x[1], y[0], y[1]].map(|v| vreinterpretq_u8_u16(v))
}
