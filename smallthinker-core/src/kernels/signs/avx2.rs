//! AVX2: 32 bits become 32 bytes of 0 or 1, which multiply as many elements.

use std::arch::x86_64::*;

use super::{SignsJob, WORD};
use crate::kernels::avx2::{load, prefetch_after};

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) fn signs(mut job: SignsJob<'_>) {
    // Each of the four bytes eight times, and the bit of it that each place wants.
    let spread = _mm256_setr_epi8(
        0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3,
    );
    let bit = _mm256_set1_epi64x(i64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
    let one = _mm256_set1_epi8(1);
    for (i, out) in std::mem::take(&mut job.out).iter_mut().enumerate() {
        let row = job.row(i);
        for words in row.chunks(8) {
            prefetch_after(&words[0]);
        }
        // Up to 64 words add twice 254 to each lane: 16 bits are enough.
        let mut acc = _mm256_setzero_si256();
        for (word, z) in row.iter().zip(job.z) {
            for (half, z) in word.as_chunks::<{ WORD / 16 }>().0.iter().zip(z.as_chunks::<{ WORD / 2 }>().0) {
                let bits = _mm256_set1_epi32(i32::from_le_bytes(*half));
                let mine = _mm256_and_si256(_mm256_shuffle_epi8(bits, spread), bit);
                acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(_mm256_min_epu8(mine, one), load(z)));
            }
        }
        *out = 2 * total(_mm256_madd_epi16(acc, _mm256_set1_epi16(1))) - job.sum;
    }
}

/// The sum of eight integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn total(x: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    _mm_cvtsi128_si32(two).wrapping_add(_mm_extract_epi32::<1>(two))
}
