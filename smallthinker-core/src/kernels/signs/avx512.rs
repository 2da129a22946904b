//! AVX-512 with the byte dot product: a word is the mask of a register of elements.

use std::arch::x86_64::*;

use super::{SignsJob, WORD};
use crate::kernels::avx2::prefetch_after;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::kernels) fn signs(mut job: SignsJob<'_>) {
    let one = _mm512_set1_epi8(1);
    for (i, out) in std::mem::take(&mut job.out).iter_mut().enumerate() {
        let row = job.row(i);
        for words in row.chunks(8) {
            prefetch_after(&words[0]);
        }
        let (mut even, mut odd) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        let mut parts = row.iter().zip(job.z);
        while let Some((word, z)) = parts.next() {
            let mask = u64::from_le_bytes(*word);
            even = _mm512_dpbusd_epi32(even, one, _mm512_maskz_mov_epi8(mask, load(z)));
            if let Some((word, z)) = parts.next() {
                let mask = u64::from_le_bytes(*word);
                odd = _mm512_dpbusd_epi32(odd, one, _mm512_maskz_mov_epi8(mask, load(z)));
            }
        }
        *out = 2 * _mm512_reduce_add_epi32(_mm512_add_epi32(even, odd)) - job.sum;
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load(x: &[i8; WORD]) -> __m512i {
    // SAFETY: 64 initialised bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}
