//! Kernels for x86-64 with AVX2, FMA and F16C.
//!
//! The functions here are safe to call from functions with the same target features; the only unsafe steps
//! are loads and stores through references to arrays of exactly a vector's size.

mod blocks;
mod float;
mod kquants;

use std::arch::x86_64::*;

use super::acts::{ActGroup, GROUP};
use super::gemm::AVX2;
use super::{Kernels, TILE_TOKENS, Tile, TileFn, attention, lanes, neurons, scalar, signs};
use crate::tensor::DType;
use crate::tensor::block::{Plain, cast, padded};

pub(super) use blocks::{add_scaled, half_scales, half_scales_at};
pub(super) use float::{add_scaled_f32, axpy_f16, axpy_f32, dot_f16, dot_f32, f32_to_f16};

pub(super) static KERNELS: Kernels = with_packed(
    "avx2",
    lanes::avx2::lanes,
    neurons::Functions { q4_0: neurons::avx2::neurons, q8_0: neurons::avx2::neurons },
);

/// With the byte dot product of CPUs that have it for 256-bit registers only (AVX-VNNI).
pub(super) static VNNI_KERNELS: Kernels = with_packed(
    "avxvnni",
    lanes::avxvnni::lanes,
    neurons::Functions { q4_0: neurons::avxvnni::neurons, q8_0: neurons::avxvnni::neurons },
);

const fn with_packed(name: &'static str, lanes: lanes::LanesFn, neurons: neurons::Functions) -> Kernels {
    Kernels {
        name,
        tile,
        lanes,
        neurons,
        signs: signs::avx2::signs,
        prefetch: prefetch_bytes,
        quantize_acts,
        dot_f16,
        axpy_f16,
        dot_f32,
        axpy_f32,
        add_scaled: add_scaled_f32,
        f32_to_f16,
        gemm: AVX2,
        attention: &attention::avx2::FUNCTIONS,
    }
}

/// How far ahead of the arithmetic weights are requested from memory. Worth a factor of two in a product
/// with one vector, which is bound by how many cache lines are under way.
pub(super) const PREFETCH_BYTES: usize = 4096;

pub(super) fn tile(dtype: DType) -> TileFn {
    match dtype {
        DType::F32 => float::tile::<float::F32>,
        DType::F16 => float::tile::<float::F16>,
        DType::BF16 => float::tile::<float::BF16>,
        DType::Q4_0 => group_tile::<blocks::Q4_0>,
        DType::Q8_0 => group_tile::<blocks::Q8_0>,
        DType::Q4_K => group_tile::<kquants::Q4K>,
        DType::Q5_K => group_tile::<kquants::Q5K>,
        DType::Q6_K => group_tile::<kquants::Q6K>,
        DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::I8 => scalar::tile(dtype),
    }
}

/// An element type without padding.
pub(super) trait Lane: Copy {}
impl Lane for u8 {}
impl Lane for i8 {}
impl Lane for i16 {}
impl Lane for u16 {}
impl Lane for i32 {}
impl Lane for f32 {}

/// Loads 32 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load<T: Lane, const N: usize>(x: &[T; N]) -> __m256i {
    const { assert!(size_of::<[T; N]>() == 32) };
    // SAFETY: 32 initialised bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

/// Loads 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_half<T: Lane, const N: usize>(x: &[T; N]) -> __m128i {
    const { assert!(size_of::<[T; N]>() == 16) };
    // SAFETY: 16 initialised bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

/// Loads eight floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_f32(x: &[f32; 8]) -> __m256 {
    _mm256_castsi256_ps(load(x))
}

/// Stores eight floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn store_f32(out: &mut [f32; 8], x: __m256) {
    // SAFETY: room for eight floats; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
}

/// The sum of the lanes, always in the same order.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum(x: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Asks for the cache lines that lie [`PREFETCH_BYTES`] after `value`. The address may lie outside
/// the weights.
#[inline]
#[allow(unused_unsafe)] // the intrinsic became safe after our oldest supported compiler
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prefetch_after<T>(value: &T) {
    let ahead = std::ptr::from_ref(value).cast::<i8>().wrapping_add(PREFETCH_BYTES);
    for line in 0..size_of::<T>().div_ceil(64) {
        // SAFETY: a prefetch is a hint; it does not access memory that isn't mapped and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line)) };
    }
}

/// Asks for a cache line. The address may lie outside the weights.
#[inline]
#[allow(unused_unsafe)] // the intrinsic became safe after our oldest supported compiler
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prefetch_line<T>(at: *const T) {
    // SAFETY: a prefetch is a hint; it does not access memory that isn't mapped and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T2>(at.cast()) };
}

/// Asks for the cache lines of a value that may lie outside the weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prefetch<T>(at: *const T) {
    for line in 0..size_of::<T>().div_ceil(64) {
        prefetch_line(at.wrapping_byte_add(64 * line));
    }
}

/// Asks for all cache lines of some bytes.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prefetch_bytes(bytes: &[u8]) {
    bytes.chunks(64).for_each(|line| prefetch_line(line.as_ptr()));
}

/// How 256 consecutive weights of a type are multiplied with 256 activations. The methods may be called only
/// on CPUs with AVX2, FMA and F16C.
pub(super) trait Format {
    /// The weights' blocks.
    type Group: Plain;
    /// Scales and minima, decoded once per group for all tokens.
    type Scales;
    /// 32 weights as integers.
    type Codes: Copy;

    /// Decodes the scales.
    unsafe fn scales(group: &Self::Group) -> Self::Scales;
    /// Weights `32 * B .. 32 * B + 32`.
    unsafe fn codes<const B: i32>(group: &Self::Group, scales: &Self::Scales) -> Self::Codes;
    /// The integer products with the eight blocks of activations, one per lane.
    unsafe fn dots(codes: &[Self::Codes; 8], q: &[[i8; 32]; 8]) -> __m256i;
    /// `acc` plus the products, made of `dots` and the constant offsets or minima of the type.
    unsafe fn add(scales: &Self::Scales, acts: &ActGroup, dots: __m256i, acc: __m256) -> __m256;
}

/// Sums each of eight vectors of eight lanes; lane `b` of the result belongs to vector `b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum_each(x: [__m256i; 8]) -> __m256i {
    let pair = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let four = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let low = four(pair(x[0], x[1]), pair(x[2], x[3]));
    let high = four(pair(x[4], x[5]), pair(x[6], x[7]));
    let (first, second) =
        (_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high));
    _mm256_add_epi32(first, second)
}

/// As [`sum_each`] for vectors of 16-bit lanes, if sums of eight lanes fit 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum_each_i16(x: [__m256i; 8]) -> __m256i {
    let pair = |a, b| _mm256_add_epi16(_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
    let four = |a, b| _mm256_add_epi16(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let low = four(pair(x[0], x[1]), pair(x[2], x[3]));
    let high = four(pair(x[4], x[5]), pair(x[6], x[7]));
    let all = _mm256_add_epi16(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
    let first = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(all));
    _mm256_add_epi32(first, _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(all)))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn group_tile<F: Format>(t: Tile<'_>) {
    match t.acts.len() {
        1 => group_rows::<F, 1>(t),
        2 => group_rows::<F, 2>(t),
        3 => group_rows::<F, 3>(t),
        _ => group_rows::<F, TILE_TOKENS>(t),
    }
}

/// Lane `b` of a sum takes the blocks `b`, `b + 8`, `b + 16`, ... in this order, and the lanes are added at
/// the end. That depends neither on `T` nor on other outputs, so that a product with many vectors has the bits
/// of one with each.
#[target_feature(enable = "avx2,fma,f16c")]
fn group_rows<F: Format, const T: usize>(mut t: Tile<'_>) {
    let acts: [&[ActGroup]; T] = std::array::from_fn(|k| t.acts.get(k).map_or(&[][..], |a| a.groups));
    for (r, row) in t.rows.chunks_exact(t.row_bytes).enumerate() {
        let (groups, rest) = cast::<F::Group>(row);
        let tail = if rest.is_empty() { None } else { Some(padded::<F::Group>(rest)) };
        let mut acc = [_mm256_setzero_ps(); T];
        for (g, group) in groups.iter().chain(&tail).enumerate() {
            prefetch_after(group);
            // SAFETY: this function has the target features that the methods ask for.
            let (scales, codes) = unsafe {
                let s = F::scales(group);
                let codes = [
                    F::codes::<0>(group, &s),
                    F::codes::<1>(group, &s),
                    F::codes::<2>(group, &s),
                    F::codes::<3>(group, &s),
                    F::codes::<4>(group, &s),
                    F::codes::<5>(group, &s),
                    F::codes::<6>(group, &s),
                    F::codes::<7>(group, &s),
                ];
                (s, codes)
            };
            for k in 0..T {
                let Some(a) = acts[k].get(g) else { continue };
                let Some(q) = a.q.as_chunks::<32>().0.first_chunk::<8>() else { continue };
                // SAFETY: as above.
                acc[k] = unsafe { F::add(&scales, a, F::dots(&codes, q), acc[k]) };
            }
        }
        t.put(r, &acc.map(|lanes| sum(lanes)));
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quantize_acts(x: &[f32], groups: &mut [ActGroup]) {
    for (x, group) in x.chunks(GROUP).zip(groups) {
        *group = ActGroup::ZERO;
        let sums = group.sums.as_chunks_mut::<2>().0.iter_mut();
        let places = group.q.as_chunks_mut::<32>().0.iter_mut().zip(&mut group.scale).zip(sums);
        for (x, ((q, scale), sums)) in x.as_chunks::<32>().0.iter().zip(places) {
            quantize_block(x, q, scale, sums);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_block(x: &[f32; 32], q: &mut [i8; 32], scale: &mut f32, sums: &mut [i16; 2]) {
    let x = x.as_chunks::<8>().0;
    let x: [__m256; 4] = std::array::from_fn(|i| load_f32(&x[i]));
    let magnitude = x.map(|v| _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(i32::MAX)));
    let most = _mm256_max_epi32(
        _mm256_max_epi32(magnitude[0], magnitude[1]),
        _mm256_max_epi32(magnitude[2], magnitude[3]),
    );
    let most = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
    let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
    let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
    let inverse;
    (*scale, inverse) = scalar::act_scale(_mm_cvtsi128_si32(most) as u32);
    if inverse == 0.0 {
        return;
    }
    let codes = x.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, _mm256_set1_ps(inverse))));
    // The packs work within 128-bit lanes; the permutation brings the groups of four back in order.
    let low = _mm256_packs_epi32(codes[0], codes[1]);
    let high = _mm256_packs_epi32(codes[2], codes[3]);
    let bytes = _mm256_packs_epi16(low, high);
    let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    // SAFETY: room for 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), bytes) };
    let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    let eights = _mm256_hadd_epi32(fours, fours);
    let all = _mm256_hadd_epi32(eights, eights);
    *sums = [_mm256_extract_epi32::<0>(all) as i16, _mm256_extract_epi32::<4>(all) as i16];
}
