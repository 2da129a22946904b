//! Kernels for 64-bit Arm with the dot-product extension. Types without a function here use the scalar set.

use std::arch::aarch64::*;
use std::arch::asm;

use super::acts::ActGroup;
use super::gemm::SCALAR;
use super::{Kernels, TILE_TOKENS, Tile, TileFn, attention, lanes, neurons, scalar, signs};
use crate::tensor::DType;
use crate::tensor::block::{BlockQ4_0, BlockQ8_0, Plain, cast, f16};

pub(super) static KERNELS: Kernels = Kernels {
    name: "neon",
    tile,
    lanes: lanes::neon::lanes,
    neurons: neurons::Functions { q4_0: neurons::neon::neurons, q8_0: neurons::neon::neurons },
    signs: signs::scalar::signs,
    prefetch: |_| {},
    quantize_acts,
    dot_f16,
    axpy_f16,
    dot_f32,
    axpy_f32,
    add_scaled: scalar::axpy_f32,
    f32_to_f16,
    gemm: SCALAR,
    attention: &attention::scalar::FUNCTIONS,
};

fn tile(dtype: DType) -> TileFn {
    match dtype {
        DType::Q4_0 => block_tile::<BlockQ4_0>,
        DType::Q8_0 => block_tile::<BlockQ8_0>,
        DType::F32 => float_tile::<F32>,
        DType::F16 => float_tile::<F16>,
        DType::BF16 => float_tile::<BF16>,
        _ => scalar::tile(dtype),
    }
}

/// Loads 16 bytes.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn load(x: &[i8; 16]) -> int8x16_t {
    // SAFETY: 16 initialised bytes; the load needs no alignment.
    unsafe { vld1q_s8(x.as_ptr()) }
}

/// Loads 16 unsigned bytes.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn load_u8(x: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 initialised bytes; the load needs no alignment.
    unsafe { vld1q_u8(x.as_ptr()) }
}

/// `acc` plus the sums of four neighbouring products. The intrinsic of this instruction is not stable on our
/// oldest compiler.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn dot4(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the CPU has the extension because this function's target features say so.
    unsafe {
        asm!("sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b", acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// A block of 32 weights. `codes` may be called only on CPUs with the features of this set.
trait Codes: Plain {
    /// The weights' integers.
    unsafe fn codes(&self) -> [int8x16_t; 2];
    /// What one step of them is worth.
    fn scale(&self) -> f32;
}

impl Codes for BlockQ4_0 {
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn codes(&self) -> [int8x16_t; 2] {
        let bytes = load_u8(&self.qs);
        let nibbles = [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)];
        nibbles.map(|n| vsubq_s8(vreinterpretq_s8_u8(n), vdupq_n_s8(8)))
    }
    #[inline]
    fn scale(&self) -> f32 {
        f16(self.d)
    }
}

impl Codes for BlockQ8_0 {
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn codes(&self) -> [int8x16_t; 2] {
        let halves = self.qs.as_chunks::<16>().0;
        [load(&halves[0]), load(&halves[1])]
    }
    #[inline]
    fn scale(&self) -> f32 {
        f16(self.d)
    }
}

#[target_feature(enable = "neon,dotprod")]
fn block_tile<B: Codes>(t: Tile<'_>) {
    match t.acts.len() {
        1 => block_rows::<B, 1>(t),
        2 => block_rows::<B, 2>(t),
        3 => block_rows::<B, 3>(t),
        _ => block_rows::<B, TILE_TOKENS>(t),
    }
}

/// Four partial sums per token, blocks ascending, lanes added at the end: an order that depends neither on
/// `T` nor on other outputs.
#[target_feature(enable = "neon,dotprod")]
fn block_rows<B: Codes, const T: usize>(mut t: Tile<'_>) {
    let acts: [&[ActGroup]; T] = std::array::from_fn(|k| t.acts.get(k).map_or(&[][..], |a| a.groups));
    for (r, row) in t.rows.chunks_exact(t.row_bytes).enumerate() {
        let mut acc = [vdupq_n_f32(0.0); T];
        for (g, group) in cast::<B>(row).0.chunks(8).enumerate() {
            for (b, block) in group.iter().enumerate() {
                // SAFETY: this function has the target features that `codes` asks for.
                let [low, high] = unsafe { block.codes() };
                let scale = block.scale();
                for k in 0..T {
                    let Some(a) = acts[k].get(g) else { continue };
                    let (Some(q), Some(s)) = (a.q.as_chunks::<32>().0.get(b), a.scale.get(b)) else {
                        continue;
                    };
                    let q = q.as_chunks::<16>().0;
                    let dots = dot4(dot4(vdupq_n_s32(0), low, load(&q[0])), high, load(&q[1]));
                    acc[k] = vfmaq_n_f32(acc[k], vcvtq_f32_s32(dots), scale * s);
                }
            }
        }
        t.put(r, &acc.map(|lanes| vaddvq_f32(lanes)));
    }
}

/// A float weight type. `widen` may be called only on CPUs with the features of this set.
trait Float {
    /// Four weights as stored.
    type Four: Plain;
    /// One weight as stored.
    type One: Plain;
    unsafe fn widen(four: &Self::Four) -> float32x4_t;
    fn value(one: &Self::One) -> f32;
}

struct F32;
struct F16;
struct BF16;

/// Halves to floats; the intrinsic wants a type that is not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn widen_f16(halves: uint16x4_t) -> float32x4_t {
    let out: float32x4_t;
    // SAFETY: registers only; this conversion is part of the base instruction set.
    unsafe {
        asm!("fcvtl {out:v}.4s, {x:v}.4h", out = lateout(vreg) out, x = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// Four 16-bit values as stored.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn load_u16(x: &[u8; 8]) -> uint16x4_t {
    // SAFETY: 8 initialised bytes; the load needs no alignment.
    vreinterpret_u16_u8(unsafe { vld1_u8(x.as_ptr()) })
}

/// Four half-precision numbers in `f32`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn halves_at(d: &[u8; 8]) -> float32x4_t {
    widen_f16(load_u16(d))
}

/// The sum of eight lanes in the order in which all sets add them.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn sum_tree([low, high]: [float32x4_t; 2]) -> f32 {
    let four = vaddq_f32(low, high);
    let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
}

impl Float for F32 {
    type Four = [u8; 16];
    type One = [u8; 4];
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn widen(four: &[u8; 16]) -> float32x4_t {
        // SAFETY: 16 initialised bytes; the load needs no alignment.
        vreinterpretq_f32_u8(unsafe { vld1q_u8(four.as_ptr()) })
    }
    fn value(one: &[u8; 4]) -> f32 {
        f32::from_le_bytes(*one)
    }
}

impl Float for F16 {
    type Four = [u8; 8];
    type One = [u8; 2];
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn widen(four: &[u8; 8]) -> float32x4_t {
        widen_f16(load_u16(four))
    }
    fn value(one: &[u8; 2]) -> f32 {
        f16(*one)
    }
}

impl Float for BF16 {
    type Four = [u8; 8];
    type One = [u8; 2];
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn widen(four: &[u8; 8]) -> float32x4_t {
        vreinterpretq_f32_u32(vshll_n_u16::<16>(load_u16(four)))
    }
    fn value(one: &[u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(*one)) << 16)
    }
}

/// One vector at a time: the order of the sums is that of a single product by construction.
#[target_feature(enable = "neon,dotprod")]
fn float_tile<F: Float>(mut t: Tile<'_>) {
    for (r, row) in t.rows.chunks_exact(t.row_bytes).enumerate() {
        let (pairs, rest) = cast::<[F::Four; 2]>(row);
        let mut sums = [0.0_f32; TILE_TOKENS];
        for (out, act) in sums.iter_mut().zip(t.acts) {
            let (x, x_rest) = act.values.as_chunks::<8>();
            let mut acc = [vdupq_n_f32(0.0); 2];
            for (pair, x) in pairs.iter().zip(x) {
                let [low, high] = load_f32(x);
                // SAFETY: this function has the target features that `widen` asks for.
                let (a, b) = unsafe { (F::widen(&pair[0]), F::widen(&pair[1])) };
                acc = [vfmaq_f32(acc[0], a, low), vfmaq_f32(acc[1], b, high)];
            }
            let tail: f32 = cast::<F::One>(rest).0.iter().zip(x_rest).map(|(w, x)| F::value(w) * x).sum();
            *out = vaddvq_f32(vaddq_f32(acc[0], acc[1])) + tail;
        }
        let count = t.acts.len().min(TILE_TOKENS);
        t.put(r, &sums[..count]);
    }
}

/// Loads eight floats.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn load_f32(x: &[f32; 8]) -> [float32x4_t; 2] {
    // SAFETY: eight initialised floats.
    unsafe { [vld1q_f32(x.as_ptr()), vld1q_f32(x.as_ptr().add(4))] }
}

/// Loads eight integers.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn load_i32(x: &[i32; 8]) -> [int32x4_t; 2] {
    // SAFETY: eight initialised integers.
    unsafe { [vld1q_s32(x.as_ptr()), vld1q_s32(x.as_ptr().add(4))] }
}

/// Stores four floats.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn store_four(out: &mut [f32; 4], x: float32x4_t) {
    // SAFETY: room for four floats.
    unsafe { vst1q_f32(out.as_mut_ptr(), x) }
}

/// Loads eight halves as floats.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn load_f16(x: &[u16; 8]) -> [float32x4_t; 2] {
    // SAFETY: eight initialised halves.
    let halves = unsafe { vld1q_u16(x.as_ptr()) };
    [widen_f16(vget_low_u16(halves)), widen_f16(vget_high_u16(halves))]
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn store_f32(out: &mut [f32; 8], x: [float32x4_t; 2]) {
    // SAFETY: room for eight floats.
    unsafe {
        vst1q_f32(out.as_mut_ptr(), x[0]);
        vst1q_f32(out.as_mut_ptr().add(4), x[1]);
    }
}

/// The plain code of the scalar set, compiled for this one: the compiler vectorises it well.
#[target_feature(enable = "neon,dotprod")]
fn quantize_acts(x: &[f32], groups: &mut [ActGroup]) {
    scalar::quantize_acts(x, groups);
}

#[target_feature(enable = "neon,dotprod")]
fn dot_f16(q: &[f32], k: &[u16]) -> f32 {
    let ((q, q_rest), (k, k_rest)) = (q.as_chunks::<8>(), k.as_chunks::<8>());
    let mut acc = [vdupq_n_f32(0.0); 2];
    for (q, k) in q.iter().zip(k) {
        let (q, k) = (load_f32(q), load_f16(k));
        acc = [vfmaq_f32(acc[0], q[0], k[0]), vfmaq_f32(acc[1], q[1], k[1])];
    }
    let tail: f32 = q_rest.iter().zip(k_rest).map(|(q, k)| q * f16(k.to_le_bytes())).sum();
    vaddvq_f32(vaddq_f32(acc[0], acc[1])) + tail
}

#[target_feature(enable = "neon,dotprod")]
fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut acc = [vdupq_n_f32(0.0); 2];
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (load_f32(a), load_f32(b));
        acc = [vfmaq_f32(acc[0], a[0], b[0]), vfmaq_f32(acc[1], a[1], b[1])];
    }
    let tail: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    vaddvq_f32(vaddq_f32(acc[0], acc[1])) + tail
}

#[target_feature(enable = "neon,dotprod")]
fn axpy_f16(acc: &mut [f32], w: f32, v: &[u16]) {
    let ((acc, acc_rest), (v, v_rest)) = (acc.as_chunks_mut::<8>(), v.as_chunks::<8>());
    for (acc, v) in acc.iter_mut().zip(v) {
        let (a, v) = (load_f32(acc), load_f16(v));
        store_f32(acc, [vfmaq_n_f32(a[0], v[0], w), vfmaq_n_f32(a[1], v[1], w)]);
    }
    for (a, v) in acc_rest.iter_mut().zip(v_rest) {
        *a = w.mul_add(f16(v.to_le_bytes()), *a);
    }
}

#[target_feature(enable = "neon,dotprod")]
fn axpy_f32(acc: &mut [f32], w: f32, v: &[f32]) {
    let ((acc, acc_rest), (v, v_rest)) = (acc.as_chunks_mut::<8>(), v.as_chunks::<8>());
    for (acc, v) in acc.iter_mut().zip(v) {
        let (a, v) = (load_f32(acc), load_f32(v));
        store_f32(acc, [vfmaq_n_f32(a[0], v[0], w), vfmaq_n_f32(a[1], v[1], w)]);
    }
    for (a, v) in acc_rest.iter_mut().zip(v_rest) {
        *a = w.mul_add(*v, *a);
    }
}

#[target_feature(enable = "neon,dotprod")]
fn f32_to_f16(src: &[f32], out: &mut [u16]) {
    let ((src, src_rest), (out, out_rest)) = (src.as_chunks::<4>(), out.as_chunks_mut::<4>());
    for (x, out) in src.iter().zip(out) {
        // SAFETY: four initialised floats; room for four halves; the conversion is a base instruction
        // and rounds to nearest even in the default mode.
        unsafe {
            let halves: uint16x4_t;
            asm!("fcvtn {out:v}.4h, {x:v}.4s", out = lateout(vreg) halves, x = in(vreg) vld1q_f32(x.as_ptr()),
                options(pure, nomem, nostack, preserves_flags));
            vst1_u16(out.as_mut_ptr(), halves);
        }
    }
    for (x, out) in src_rest.iter().zip(out_rest) {
        *out = half::f16::from_f32_const(*x).to_bits();
    }
}
