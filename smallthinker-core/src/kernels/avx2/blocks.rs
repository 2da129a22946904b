//! Q4_0 and Q8_0 with AVX2: eight blocks of 32 at a time.
//!
//! SAFETY: the `unsafe fn`s here implement [`Format`] and are unsafe for its one reason, the CPU features that it
//! names; every access goes through references to whole blocks.

use std::arch::x86_64::*;

use super::{Format, load, load_f32, load_half, sum_each, sum_each_i16};
use crate::kernels::acts::ActGroup;
use crate::tensor::block::{BlockQ4_0, BlockQ8_0};

/// The scales of eight blocks in `f32`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn half_scales(d: [[u8; 2]; 8]) -> __m256 {
    let [a, b, c, d, e, f, g, h] = d.map(i16::from_le_bytes);
    _mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h))
}

/// Eight half-precision numbers in `f32`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn half_scales_at(d: &[u8; 16]) -> __m256 {
    _mm256_cvtph_ps(load_half(d))
}

/// `acc` plus the blocks' integers times what they are worth.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn add_scaled(scales: __m256, acts: &ActGroup, dots: __m256i, acc: __m256) -> __m256 {
    let step = _mm256_mul_ps(scales, load_f32(&acts.scale));
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), step, acc)
}

pub(in crate::kernels) struct Q4_0;

impl Format for Q4_0 {
    type Group = [BlockQ4_0; 8];
    type Scales = __m256;
    type Codes = __m256i;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(group: &Self::Group) -> __m256 {
        half_scales(group.map(|block| block.d))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes<const B: i32>(group: &Self::Group, _: &__m256) -> __m256i {
        let both = _mm256_broadcastsi128_si256(load_half(&group[B as usize].qs));
        let shifted = _mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 4, 4));
        _mm256_and_si256(shifted, _mm256_set1_epi8(15))
    }

    /// Sums of eight pairs of products are at most 8 · 2 · 15 · 127 = 30480: they fit 16 bits.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots(codes: &[__m256i; 8], q: &[[i8; 32]; 8]) -> __m256i {
        sum_each_i16(std::array::from_fn(|b| _mm256_maddubs_epi16(codes[b], load(&q[b]))))
    }

    /// Codes count from 0 while values count from -8: Σ (c - 8) q = Σ c q - 8 Σ q.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add(scales: &__m256, acts: &ActGroup, dots: __m256i, acc: __m256) -> __m256 {
        let offset = _mm256_madd_epi16(load(&acts.sums), _mm256_set1_epi16(-8));
        add_scaled(*scales, acts, _mm256_add_epi32(dots, offset), acc)
    }
}

pub(in crate::kernels) struct Q8_0;

impl Format for Q8_0 {
    type Group = [BlockQ8_0; 8];
    type Scales = __m256;
    /// Magnitudes, unsigned, and the codes themselves for their signs.
    type Codes = (__m256i, __m256i);

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(group: &Self::Group) -> __m256 {
        half_scales(group.map(|block| block.d))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes<const B: i32>(group: &Self::Group, _: &__m256) -> Self::Codes {
        let codes = load(&group[B as usize].qs);
        (_mm256_abs_epi8(codes), codes)
    }

    /// The sign moves from the weight to the activation. That is exact even for a weight of -128, whose
    /// magnitude 128 is a valid unsigned byte, because activations stay in -127..=127 and can be negated.
    /// (The other way round, negating the weight, -128 would wrap.) Pairs reach 2 · 128 · 127 = 32512.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots(codes: &[Self::Codes; 8], q: &[[i8; 32]; 8]) -> __m256i {
        sum_each(std::array::from_fn(|b| {
            let (magnitudes, codes) = codes[b];
            let signed = _mm256_sign_epi8(load(&q[b]), codes);
            _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, signed), _mm256_set1_epi16(1))
        }))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add(scales: &__m256, acts: &ActGroup, dots: __m256i, acc: __m256) -> __m256 {
        add_scaled(*scales, acts, dots, acc)
    }
}
