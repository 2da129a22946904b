//! The reference kernels: plain Rust, for every CPU. Other sets are tested against these.

use super::acts::ActGroup;
use super::gemm::SCALAR;
use super::{Kernels, TILE_TOKENS, Tile, TileFn, attention, lanes, neurons, signs};
use crate::tensor::DType;
use crate::tensor::block::{self, Block, cast, f16};

pub(super) static KERNELS: Kernels = Kernels {
    name: "scalar",
    tile,
    lanes: lanes::scalar::lanes,
    neurons: neurons::Functions { q4_0: neurons::scalar::neurons, q8_0: neurons::scalar::neurons },
    signs: signs::scalar::signs,
    prefetch: |_| {},
    quantize_acts,
    dot_f16,
    axpy_f16,
    dot_f32,
    axpy_f32,
    add_scaled: axpy_f32,
    f32_to_f16,
    gemm: SCALAR,
    attention: &attention::scalar::FUNCTIONS,
};

/// The tile function of each weight type.
pub(super) fn tile(dtype: DType) -> TileFn {
    match dtype {
        DType::F32 => |t| float_tile(t, f32::from_le_bytes),
        DType::F16 => |t| float_tile(t, f16),
        DType::BF16 => |t| float_tile(t, bf16),
        DType::Q4_0 => block_tile::<block::BlockQ4_0>,
        DType::Q4_1 => block_tile::<block::BlockQ4_1>,
        DType::Q5_0 => block_tile::<block::BlockQ5_0>,
        DType::Q5_1 => block_tile::<block::BlockQ5_1>,
        DType::Q8_0 => block_tile::<block::BlockQ8_0>,
        DType::Q4_K => block_tile::<block::BlockQ4K>,
        DType::Q5_K => block_tile::<block::BlockQ5K>,
        DType::Q6_K => block_tile::<block::BlockQ6K>,
        DType::I8 => |t| float_tile(t, block::integer),
    }
}

fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Per 32 elements: integer sums with the weights' codes, then one rounding step per scale, blocks ascending.
fn block_tile<B: Block>(mut t: Tile<'_>) {
    let subs_per_block = B::DTYPE.block_len() / block::SUB;
    for (r, row) in t.rows.chunks_exact(t.row_bytes).enumerate() {
        let mut sums = [0.0_f32; TILE_TOKENS];
        for (b, block) in cast::<B>(row).0.iter().enumerate() {
            for s in 0..subs_per_block {
                let sub = block.sub(s);
                for (sum, act) in sums.iter_mut().zip(t.acts) {
                    let Some(a) = act.block(b * subs_per_block + s) else { continue };
                    let (q, x) = (sub.q.as_chunks::<16>().0, a.q.as_chunks::<16>().0);
                    let dot = |half: usize| -> i32 {
                        q[half].iter().zip(&x[half]).map(|(&q, &x)| i32::from(q) * i32::from(x)).sum()
                    };
                    let min = sub.min * (i32::from(a.sums[0]) + i32::from(a.sums[1])) as f32;
                    *sum += a.scale * (sub.scale[0] * dot(0) as f32 + sub.scale[1] * dot(1) as f32 - min);
                }
            }
        }
        let count = t.acts.len();
        t.put(r, &sums[..count.min(TILE_TOKENS)]);
    }
}

/// The sum of eight lanes in the order in which all sets add them.
pub(super) fn sum_tree([a, b, c, d, e, f, g, h]: [f32; 8]) -> f32 {
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

fn float_tile<const N: usize>(mut t: Tile<'_>, value: impl Fn([u8; N]) -> f32) {
    for (r, row) in t.rows.chunks_exact(t.row_bytes).enumerate() {
        let mut sums = [0.0_f32; TILE_TOKENS];
        for (sum, act) in sums.iter_mut().zip(t.acts) {
            *sum = row.as_chunks::<N>().0.iter().zip(act.values).map(|(w, x)| value(*w) * x).sum();
        }
        let count = t.acts.len();
        t.put(r, &sums[..count.min(TILE_TOKENS)]);
    }
}

/// Blocks whose largest magnitude is below this count as zero: the reciprocal of their step would overflow.
pub(super) const TINY: f32 = 1e-30;

/// Scale and reciprocal of a block of activations from the bits of its largest magnitude. Taken as integers,
/// magnitudes order infinities and NaN above all numbers, so one comparison finds them.
#[inline]
pub(super) fn act_scale(amax_bits: u32) -> (f32, f32) {
    let amax = f32::from_bits(amax_bits);
    if amax_bits >= f32::INFINITY.to_bits() {
        (f32::NAN, 0.0)
    } else if amax < TINY {
        (0.0, 0.0)
    } else {
        (amax / 127.0, 127.0 / amax)
    }
}

/// Adding and subtracting 1.5 · 2²³ rounds a small float to the nearest integer, ties to even, which is what
/// the conversion instructions of the other sets do.
const ROUND: f32 = 12_582_912.0;

pub(super) fn quantize_acts(x: &[f32], groups: &mut [ActGroup]) {
    for (x, group) in x.chunks(super::acts::GROUP).zip(groups) {
        *group = ActGroup::ZERO;
        let scales = group.scale.iter_mut();
        for ((x, q), scale) in x.as_chunks::<32>().0.iter().zip(group.q.as_chunks_mut::<32>().0).zip(scales) {
            let amax = x.iter().fold(0, |m, v| m.max(v.abs().to_bits()));
            let inverse;
            (*scale, inverse) = act_scale(amax);
            if inverse != 0.0 {
                *q = x.map(|v| (v * inverse + ROUND - ROUND) as i8);
            }
        }
        for (sum, q) in group.sums.iter_mut().zip(group.q.as_chunks::<16>().0) {
            *sum = q.iter().map(|&q| i16::from(q)).sum();
        }
    }
}

fn dot_f16(q: &[f32], k: &[u16]) -> f32 {
    q.iter().zip(k).map(|(q, k)| q * half::f16::from_bits(*k).to_f32_const()).sum()
}

fn axpy_f16(acc: &mut [f32], w: f32, v: &[u16]) {
    for (a, v) in acc.iter_mut().zip(v) {
        *a += w * half::f16::from_bits(*v).to_f32_const();
    }
}

fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn axpy_f32(acc: &mut [f32], w: f32, v: &[f32]) {
    for (a, v) in acc.iter_mut().zip(v) {
        *a += w * v;
    }
}

fn f32_to_f16(src: &[f32], out: &mut [u16]) {
    for (o, x) in out.iter_mut().zip(src) {
        *o = half::f16::from_f32_const(*x).to_bits();
    }
}

/// Eight partial sums in `f64`, a fixed order that compilers turn into vector code.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mut lanes = [0.0_f64; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*v) * f64::from(*v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(*v) * f64::from(*v);
    }
    let mean = lanes.iter().sum::<f64>() / x.len().max(1) as f64;
    let scale = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * scale * w;
    }
}

pub(super) fn relu_mul(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        // Not `max`: that would turn NaN into 0 and hide damaged weights. The product first: no branch is needed.
        let product = *g * u;
        *g = if *g <= 0.0 { 0.0 } else { product };
    }
}
