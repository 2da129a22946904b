//! With AVX-512 (F, BW, DQ, VL, VNNI).

use std::arch::x86_64::*;

use super::super::super::avx512::{
    ROWS, for_rows, load, load_line, load_rows, prefetch, store_line, store_rows,
};
use super::super::avx512::{request, seen, values, widen, widen_scales};
use super::super::{NOT_FINITE, SQUARES, Square4};
use super::{DITHER, Mix, Stretch, squares, stretching, worth};
use crate::kernels::avx2::{load_f32, store_f32};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in super::super) fn stretch(s: Stretch<'_>) {
    for square in squares(&s.positions) {
        let seen = seen(&s.positions, square);
        let mut most = _mm512_setzero_si512();
        for values in s.values[square..].iter().step_by(SQUARES) {
            // SAFETY: 32 halves.
            let scales = unsafe { _mm512_maskz_loadu_epi16(seen, values.scales.as_ptr().cast()) };
            most = _mm512_max_epu16(most, scales);
        }
        let finite = _mm512_cmplt_epu16_mask(most, _mm512_set1_epi16(NOT_FINITE as i16));
        let usable = _mm512_mask_cmpneq_epi16_mask(finite, most, _mm512_setzero_si512());
        let [a, b] = widen(_mm512_maskz_mov_epi16(usable, most));
        let one = _mm512_set1_ps(1.0);
        store_line(
            &mut s.inverses.as_chunks_mut().0[square],
            [_mm512_maskz_div_ps(usable as u16, one, a), _mm512_maskz_div_ps((usable >> 16) as u16, one, b)],
        );
        for (weights, peaks) in s.weights.iter_mut().zip(&mut *s.peaks).take(s.rows) {
            let weights = &mut weights.as_chunks_mut().0[square];
            let [wa, wb] = load_line(weights);
            let (wa, wb) = (_mm512_mul_ps(wa, a), _mm512_mul_ps(wb, b));
            // The second operand if one is not a number.
            let most = _mm512_max_ps(wb, _mm512_max_ps(wa, _mm512_setzero_ps()));
            let (by, most) = stretching(_mm512_reduce_max_ps(most));
            peaks[square] = if finite == u32::MAX { most } else { f32::NAN };
            let by = _mm512_set1_ps(by);
            store_line(weights, [_mm512_mul_ps(wa, by), _mm512_mul_ps(wb, by)]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in super::super) fn mix(m: Mix<'_>) {
    for_rows!(mix_rows(m))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn mix_rows<const R: usize>(m: Mix<'_>) {
    let (Some(rows), Some(gains)) = (m.weights.first_chunk::<R>(), m.gains.first_chunk::<R>()) else {
        return;
    };
    let Some(peaks) = m.peaks.first_chunk::<R>() else { return };
    // Of two rows each.
    let integers = &mut m.integers[..R.div_ceil(2)];
    let dither = load(&DITHER);
    let mut factors = [[0.0; SQUARES]; R];
    for ((factors, peaks), gain) in factors.iter_mut().zip(peaks).zip(gains) {
        store_f32(factors, _mm256_mul_ps(load_f32(peaks), _mm256_set1_ps(worth(*gain))));
    }
    for s in squares(&m.positions) {
        let seen = seen(&m.positions, s);
        let [a, b] = widen_scales(&m.values[s].scales);
        let inverses = load_line(&m.inverses.as_chunks().0[s]);
        let a = _mm512_maskz_mul_ps(seen as u16, a, inverses[0]);
        let b = _mm512_maskz_mul_ps((seen >> 16) as u16, b, inverses[1]);
        let words = |row: usize| {
            let [w0, w1] = load_line(&rows[row.min(R - 1)].as_chunks().0[s]);
            _mm512_packus_epi32(
                _mm512_cvttps_epi32(_mm512_fmadd_ps(w0, a, dither)),
                _mm512_cvttps_epi32(_mm512_fmadd_ps(w1, b, dither)),
            )
        };
        for (pair, integers) in integers.iter_mut().enumerate() {
            let bytes = _mm512_packus_epi16(words(2 * pair), words(2 * pair + 1));
            // SAFETY: room for 64 bytes; the store needs no alignment.
            unsafe { _mm512_storeu_si512(integers[s].as_mut_ptr().cast(), bytes) };
        }
    }
    let mut sums = load_rows::<R>(m.out, m.width);
    for s in squares(&m.positions) {
        let square = &m.values[s];
        let next = m.ahead.square(s).start;
        prefetch(next);
        let mut next = next.wrapping_add(size_of_val(&square.scales));
        let mut acc = [[_mm512_setzero_si512(); 2]; R];
        // Those whose weights lie together.
        for first in [0, 2] {
            for four in [first, first + 1, first + 4, first + 5] {
                next = request::<Square4>(next);
                let values = values(square, four);
                for (row, acc) in acc.iter_mut().enumerate() {
                    let weights = _mm512_set1_epi32(integers[row / 2][s][place(row, four)]);
                    *acc = [
                        _mm512_dpbusd_epi32(acc[0], weights, values[0]),
                        _mm512_dpbusd_epi32(acc[1], weights, values[1]),
                    ];
                }
            }
        }
        for ((acc, sums), factor) in acc.iter().zip(&mut sums).zip(&factors) {
            let factor = _mm512_set1_ps(factor[s]);
            let add = |i: usize| _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[i]), factor, sums[i]);
            *sums = [add(0), add(1)];
        }
    }
    store_rows(m.out, m.width, &sums);
}

/// Where the weights of four positions are among those of two rows. What packs takes the parts of registers one by one: four of the first
/// 16 positions of a row and four of the others, then those of the other row.
const fn place(row: usize, four: usize) -> usize {
    four % 4 * 4 + row % 2 * 2 + four / 4
}
