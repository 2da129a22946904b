//! Q4_K, Q5_K and Q6_K with AVX2: one block of 256 at a time.
//!
//! SAFETY: the `unsafe fn`s here implement [`Format`] and are unsafe for its one reason, the CPU features that it
//! names; every access goes through references to whole blocks.

use std::arch::x86_64::*;

use super::blocks::add_scaled;
use super::{Format, load, load_f32, load_half, sum_each, sum_each_i16};
use crate::kernels::acts::ActGroup;
use crate::tensor::block::{BlockQ4K, BlockQ5K, BlockQ6K, k_scales};

/// Scales and minima of the eight sub-blocks of a Q4_K or Q5_K block.
pub(in crate::kernels) struct ScaleMin {
    scale: __m256,
    min: __m256,
}

/// A half-precision value in all lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn half(bytes: [u8; 2]) -> __m256 {
    _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(i16::from_le_bytes(bytes)))))
}

/// Eight unsigned bytes as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bytes_f32(bytes: [u8; 8]) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(bytes))))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scale_min(d: [u8; 2], dmin: [u8; 2], packed: &[u8; 12]) -> ScaleMin {
    let (scales, mins) = k_scales(packed);
    ScaleMin {
        scale: _mm256_mul_ps(half(d), bytes_f32(scales)),
        min: _mm256_mul_ps(half(dmin), bytes_f32(mins)),
    }
}

/// Σ (scale · c - min) · q = scale · Σ c q - min · Σ q.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_with_min(scales: &ScaleMin, acts: &ActGroup, dots: __m256i, acc: __m256) -> __m256 {
    let sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(load(&acts.sums), _mm256_set1_epi16(1)));
    let min = _mm256_mul_ps(scales.min, load_f32(&acts.scale));
    add_scaled(scales.scale, acts, dots, _mm256_fnmadd_ps(min, sums, acc))
}

/// Sub-block `B` of the nibbles: low halves of chunk `B / 2` for even `B`, high halves for odd.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles<const B: i32>(qs: &[u8; 128]) -> __m256i {
    let bytes = load(&qs.as_chunks::<32>().0[B as usize / 2]);
    let wanted = if B % 2 == 0 { bytes } else { _mm256_srli_epi16::<4>(bytes) };
    _mm256_and_si256(wanted, _mm256_set1_epi8(15))
}

/// Unsigned codes of at most 63 times activations: pairs are at most 2 · 63 · 127, within 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_unsigned(codes: __m256i, q: __m256i, scales: __m256i) -> __m256i {
    _mm256_madd_epi16(_mm256_maddubs_epi16(codes, q), scales)
}

pub(in crate::kernels) struct Q4K;

impl Format for Q4K {
    type Group = BlockQ4K;
    type Scales = ScaleMin;
    type Codes = __m256i;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(group: &BlockQ4K) -> ScaleMin {
        scale_min(group.d, group.dmin, &group.scales)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes<const B: i32>(group: &BlockQ4K, _: &ScaleMin) -> __m256i {
        nibbles::<B>(&group.qs)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots(codes: &[__m256i; 8], q: &[[i8; 32]; 8]) -> __m256i {
        // Sums of eight pairs of products are at most 8 · 2 · 15 · 127 = 30480: they fit 16 bits.
        sum_each_i16(std::array::from_fn(|b| _mm256_maddubs_epi16(codes[b], load(&q[b]))))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add(scales: &ScaleMin, acts: &ActGroup, dots: __m256i, acc: __m256) -> __m256 {
        add_with_min(scales, acts, dots, acc)
    }
}

pub(in crate::kernels) struct Q5K;

impl Format for Q5K {
    type Group = BlockQ5K;
    type Scales = ScaleMin;
    type Codes = __m256i;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(group: &BlockQ5K) -> ScaleMin {
        scale_min(group.d, group.dmin, &group.scales)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes<const B: i32>(group: &BlockQ5K, _: &ScaleMin) -> __m256i {
        let bit = _mm256_set1_epi8((1_u8 << B) as i8);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(load(&group.qh), bit), bit);
        _mm256_or_si256(nibbles::<B>(&group.qs), _mm256_and_si256(set, _mm256_set1_epi8(16)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots(codes: &[__m256i; 8], q: &[[i8; 32]; 8]) -> __m256i {
        let ones = _mm256_set1_epi16(1);
        sum_each(std::array::from_fn(|b| dot_unsigned(codes[b], load(&q[b]), ones)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add(scales: &ScaleMin, acts: &ActGroup, dots: __m256i, acc: __m256) -> __m256 {
        add_with_min(scales, acts, dots, acc)
    }
}

pub(in crate::kernels) struct Q6K;

/// The scale of the block, the same in all lanes, and the integer scales of its 16 sub-blocks.
pub(in crate::kernels) struct SixteenScales {
    d: __m256,
    all: __m256i,
    /// Scales 0-7, then 8-15, each in both 128-bit lanes.
    halves: [__m256i; 2],
}

impl Format for Q6K {
    type Group = BlockQ6K;
    type Scales = SixteenScales;
    /// Codes, and the 16-bit scale of each pair of them.
    type Codes = (__m256i, __m256i);

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(group: &BlockQ6K) -> SixteenScales {
        let all = _mm256_cvtepi8_epi16(load_half(&group.scales));
        let halves =
            [_mm256_permute4x64_epi64::<0b01_00_01_00>(all), _mm256_permute4x64_epi64::<0b11_10_11_10>(all)];
        SixteenScales { d: half(group.d), all, halves }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes<const B: i32>(group: &BlockQ6K, scales: &SixteenScales) -> Self::Codes {
        let (half, quarter) = (B as usize / 4, B as usize % 4);
        let low = load(&group.ql.as_chunks::<32>().0[2 * half + quarter % 2]);
        let low = if quarter < 2 { low } else { _mm256_srli_epi16::<4>(low) };
        let low = _mm256_and_si256(low, _mm256_set1_epi8(15));
        // The pair of bits of this quarter, moved to bits 4 and 5. The mask also removes what the 16-bit
        // shifts bring in from the neighbouring byte.
        let high = load(&group.qh.as_chunks::<32>().0[half]);
        let high = match quarter {
            0 => _mm256_slli_epi16::<4>(high),
            1 => _mm256_slli_epi16::<2>(high),
            2 => high,
            _ => _mm256_srli_epi16::<2>(high),
        };
        let high = _mm256_and_si256(high, _mm256_set1_epi8(0x30));
        // Scale 2q in the first lane and 2q + 1 in the second, of the eight that the half has.
        let pair = 4 * quarter as i16;
        let first = _mm_set1_epi16(pair | ((pair + 1) << 8));
        let second = _mm_set1_epi16((pair + 2) | ((pair + 3) << 8));
        let scale = _mm256_shuffle_epi8(scales.halves[half], _mm256_set_m128i(second, first));
        (_mm256_or_si256(low, high), scale)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots(codes: &[Self::Codes; 8], q: &[[i8; 32]; 8]) -> __m256i {
        sum_each(std::array::from_fn(|b| dot_unsigned(codes[b].0, load(&q[b]), codes[b].1)))
    }

    /// Σ scale · (c - 32) · q: the offset is -32 times the scales' products with the sums. Together at most
    /// 32 · 32 · 127 · 128 < 2^24 in magnitude, so the conversion to float is exact.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add(scales: &SixteenScales, acts: &ActGroup, dots: __m256i, acc: __m256) -> __m256 {
        let offset = _mm256_slli_epi32::<5>(_mm256_madd_epi16(load(&acts.sums), scales.all));
        add_scaled(scales.d, acts, _mm256_sub_epi32(dots, offset), acc)
    }
}
