//! Kernels for x86-64 with AVX-512 (F, BW, DQ, VL) and its byte dot product (VNNI). Types that gain nothing
//! from wider registers use the AVX2 functions; those need no more than this set does.

mod float;

use std::arch::x86_64::*;

use super::acts::{ActGroup, GROUP};
use super::{Kernels, TILE_TOKENS, Tile, TileFn, attention, avx2, gemm, lanes, neurons, signs};
use crate::tensor::DType;
use crate::tensor::block::{BlockQ4_0, BlockQ8_0, Plain, cast, padded};

/// Requests weights eight rows ahead: what AMD's cores need to get all that the memory gives.
pub(super) static KERNELS: Kernels = set("avx512vnni", lanes::avx512::lanes::<8>, gemm::AVX512);

/// With the tile unit (AMX) for products with many vectors, which only Intel's processors have. Theirs are fastest with weights
/// requested four rows ahead.
pub(super) static AMX_KERNELS: Kernels = set("amx", lanes::avx512::lanes::<4>, gemm::AMX);

const fn set(name: &'static str, lanes: lanes::LanesFn, gemm: gemm::Gemm) -> Kernels {
    Kernels {
        name,
        tile,
        lanes,
        neurons: neurons::Functions { q4_0: neurons::avx512::neurons, q8_0: neurons::avx512::neurons },
        signs: signs::avx512::signs,
        prefetch: avx2::prefetch_bytes,
        quantize_acts: avx2::quantize_acts,
        dot_f16: avx2::dot_f16,
        axpy_f16: avx2::axpy_f16,
        dot_f32: avx2::dot_f32,
        axpy_f32: avx2::axpy_f32,
        add_scaled: avx2::add_scaled_f32,
        f32_to_f16: avx2::f32_to_f16,
        gemm,
        attention: &attention::avx512::FUNCTIONS,
    }
}

fn tile(dtype: DType) -> TileFn {
    match dtype {
        DType::Q4_0 => group_tile::<Q4_0>,
        DType::Q8_0 => group_tile::<Q8_0>,
        DType::F32 => float::tile,
        _ => avx2::tile(dtype),
    }
}

/// How 256 consecutive weights are multiplied with 256 activations. The methods may be called only on CPUs
/// with the features of this set.
trait Format {
    type Group: Plain;
    /// What an unsigned code of 0 stands for.
    const ZERO: i16;
    /// Scales of the eight blocks.
    unsafe fn scales(group: &Self::Group) -> __m256;
    /// Blocks `2 * pair` and `2 * pair + 1` as unsigned codes.
    unsafe fn codes(group: &Self::Group, pair: usize) -> __m512i;
}

struct Q4_0;

impl Format for Q4_0 {
    type Group = [BlockQ4_0; 8];
    const ZERO: i16 = -8;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn scales(group: &Self::Group) -> __m256 {
        avx2::half_scales(group.map(|block| block.d))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn codes(group: &Self::Group, pair: usize) -> __m512i {
        let [a, b] = [0, 1].map(|i| _mm256_broadcastsi128_si256(avx2::load_half(&group[2 * pair + i].qs)));
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
        let shifted = _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
        _mm512_and_si512(shifted, _mm512_set1_epi8(15))
    }
}

struct Q8_0;

impl Format for Q8_0 {
    type Group = [BlockQ8_0; 8];
    /// Flipping the top bit of a signed byte adds 128.
    const ZERO: i16 = -128;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn scales(group: &Self::Group) -> __m256 {
        avx2::half_scales(group.map(|block| block.d))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn codes(group: &Self::Group, pair: usize) -> __m512i {
        let [a, b] = [0, 1].map(|i| avx2::load(&group[2 * pair + i].qs));
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
        _mm512_xor_si512(both, _mm512_set1_epi8(-128))
    }
}

/// Loads 64 activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load(q: &[i8; 64]) -> __m512i {
    // SAFETY: 64 initialised bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(q.as_ptr().cast()) }
}

/// Sums the eight lanes of each of eight blocks, two blocks per vector; lane `b` of the result is block `b`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn sum_each(x: [__m512i; 4]) -> __m256i {
    let pair = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    // Each 128-bit quarter: the sums of the even blocks 0, 2, 4, 6 (quarters 0, 1) or the odd ones (2, 3).
    let (ab, cd) = (pair(x[0], x[1]), pair(x[2], x[3]));
    let all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let (even, odd) = (_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    let halves = |x| _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let (even, odd) = (halves(even), halves(odd));
    _mm256_set_m128i(_mm_unpackhi_epi32(even, odd), _mm_unpacklo_epi32(even, odd))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn group_tile<F: Format>(t: Tile<'_>) {
    match t.acts.len() {
        1 => group_rows::<F, 1>(t),
        2 => group_rows::<F, 2>(t),
        3 => group_rows::<F, 3>(t),
        _ => group_rows::<F, TILE_TOKENS>(t),
    }
}

/// The integers and the order of the float operations are those of the AVX2 set, and so are the results.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn group_rows<F: Format, const T: usize>(mut t: Tile<'_>) {
    const { assert!(GROUP == 4 * 64) };
    let acts: [&[ActGroup]; T] = std::array::from_fn(|k| t.acts.get(k).map_or(&[][..], |a| a.groups));
    for (r, row) in t.rows.chunks_exact(t.row_bytes).enumerate() {
        let (groups, rest) = cast::<F::Group>(row);
        let tail = if rest.is_empty() { None } else { Some(padded::<F::Group>(rest)) };
        let mut acc = [_mm256_setzero_ps(); T];
        for (g, group) in groups.iter().chain(&tail).enumerate() {
            avx2::prefetch_after(group);
            // SAFETY: this function has the target features that the methods ask for.
            let (scales, codes) = unsafe {
                let codes = [F::codes(group, 0), F::codes(group, 1), F::codes(group, 2), F::codes(group, 3)];
                (F::scales(group), codes)
            };
            for k in 0..T {
                let Some(a) = acts[k].get(g) else { continue };
                let q = a.q.as_chunks::<64>().0;
                // Four products per 32-bit lane: at most 4 · 255 · 127, no saturation.
                let dots: [__m512i; 4] = std::array::from_fn(|i| {
                    _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[i], load(&q[i]))
                });
                // Σ (c + ZERO) q = Σ c q + ZERO Σ q
                let offset = _mm256_madd_epi16(avx2::load(&a.sums), _mm256_set1_epi16(F::ZERO));
                let dots = _mm256_add_epi32(sum_each(dots), offset);
                acc[k] = avx2::add_scaled(scales, a, dots, acc[k]);
            }
        }
        t.put(r, &acc.map(|lanes| avx2::sum(lanes)));
    }
}
