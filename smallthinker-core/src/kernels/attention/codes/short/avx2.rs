//! With AVX2, FMA and F16C: products of unsigned and signed bytes, pairs of which are added up in 16 bits.

use std::arch::x86_64::*;

use super::super::super::avx2::{ROWS, for_rows, prefetch};
use super::super::{LANES, NOT_FINITE, SQUARES};
use super::{DITHER, Mix, Stretch, inside, squares, stretching, worth};
use crate::kernels::avx2::{load_f32, load_half, store_f32};

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn stretch(s: Stretch<'_>) {
    for square in squares(&s.positions) {
        let seen = inside(&s.positions, square);
        let mut most = [0_u16; LANES];
        for values in s.values[square..].iter().step_by(SQUARES) {
            let places = most[seen.clone()].iter_mut().zip(&values.scales[seen.clone()]);
            places.for_each(|(most, scale)| *most = (*most).max(*scale));
        }
        let finite = most.iter().all(|scale| *scale < NOT_FINITE);
        let mut greatest = [0.0; LANES];
        let inverses = &mut s.inverses.as_chunks_mut::<LANES>().0[square];
        let places = greatest.as_chunks_mut::<8>().0.iter_mut().zip(inverses.as_chunks_mut::<8>().0);
        for (most, (greatest, inverses)) in most.as_chunks_mut::<8>().0.iter_mut().zip(places) {
            most.iter_mut().for_each(|scale| *scale = if *scale < NOT_FINITE { *scale } else { 0 });
            let scales = _mm256_cvtph_ps(load_half(most));
            let usable = _mm256_cmp_ps::<_CMP_GT_OQ>(scales, _mm256_setzero_ps());
            store_f32(greatest, scales);
            store_f32(inverses, _mm256_and_ps(usable, _mm256_div_ps(_mm256_set1_ps(1.0), scales)));
        }
        for (weights, peaks) in s.weights.iter_mut().zip(&mut *s.peaks).take(s.rows) {
            let weights = &mut weights.as_chunks_mut::<LANES>().0[square];
            let mut most = _mm256_setzero_ps();
            for (w, scales) in weights.as_chunks_mut::<8>().0.iter_mut().zip(greatest.as_chunks::<8>().0) {
                let product = _mm256_mul_ps(load_f32(w), load_f32(scales));
                store_f32(w, product);
                // The second operand if one is not a number.
                most = _mm256_max_ps(product, most);
            }
            let mut lanes = [0.0; 8];
            store_f32(&mut lanes, most);
            let (by, most) = stretching(lanes.into_iter().fold(0.0, f32::max));
            peaks[square] = if finite { most } else { f32::NAN };
            for w in weights.as_chunks_mut::<8>().0 {
                store_f32(w, _mm256_mul_ps(load_f32(w), _mm256_set1_ps(by)));
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) fn mix(m: Mix<'_>) {
    let mut block = Block { rows: m.rows, ratios: [[0.0; LANES]; SQUARES], m };
    let m = &block.m;
    for s in squares(&m.positions) {
        let (seen, ratios) = (inside(&m.positions, s), &mut block.ratios[s]);
        let inverses = m.inverses.as_chunks::<LANES>().0[s];
        let scales = m.values[s].scales.as_chunks::<8>().0.iter().zip(inverses.as_chunks::<8>().0);
        for (ratios, (scales, inverses)) in ratios.as_chunks_mut::<8>().0.iter_mut().zip(scales) {
            store_f32(ratios, _mm256_mul_ps(_mm256_cvtph_ps(load_half(scales)), load_f32(inverses)));
        }
        ratios[..seen.start].fill(0.0);
        ratios[seen.end..].fill(0.0);
    }
    for_rows!(mix_rows(block); 1 2 3 4 5);
}

/// What all rows share.
struct Block<'a> {
    rows: usize,
    /// Scales of the positions that are seen, relative to the greatest of each position.
    ratios: [[f32; LANES]; SQUARES],
    m: Mix<'a>,
}

#[target_feature(enable = "avx2,fma,f16c")]
fn mix_rows<const R: usize>(block: &mut Block<'_>, from: usize) {
    let m = &mut block.m;
    let (Some(rows), Some(gains)) =
        (m.weights[from..].first_chunk::<R>(), m.gains[from..].first_chunk::<R>())
    else {
        return;
    };
    let Some(peaks) = m.peaks[from..].first_chunk::<R>() else { return };
    let out = &mut m.out[from * m.width..];
    let ones = _mm256_set1_epi16(1);
    let codes = _mm_setr_epi8(-15, -13, -11, -9, -7, -5, -3, -1, 1, 3, 5, 7, 9, 11, 13, 15);
    let codes = _mm256_broadcastsi128_si256(codes);
    for s in squares(&m.positions) {
        let square = &m.values[s];
        if from == 0 {
            prefetch(m.ahead.square(s));
        }
        let mut weights = [[0_i32; LANES / 4]; R];
        for (weights, row) in weights.iter_mut().zip(rows) {
            integers(&row.as_chunks().0[s], &block.ratios[s], weights);
        }
        for half in 0..2 {
            let mut dots = [[_mm256_setzero_si256(); 2]; R];
            for fours in 0..2 {
                // Four times two products of 255 and 15 fit 16 bits: 30,600.
                let mut acc = [[_mm256_setzero_si256(); 2]; R];
                for pair in 0..2 {
                    for (upper, held) in square.halves(2 * fours + pair, half).into_iter().enumerate() {
                        let values =
                            [_mm256_shuffle_epi8(codes, held[0]), _mm256_shuffle_epi8(codes, held[1])];
                        let four = 4 * fours + 2 * pair + upper;
                        for (acc, weights) in acc.iter_mut().zip(&weights) {
                            let weights = _mm256_set1_epi32(weights[four]);
                            let add =
                                |i: usize| _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(weights, values[i]));
                            *acc = [add(0), add(1)];
                        }
                    }
                }
                for (dots, acc) in dots.iter_mut().zip(acc) {
                    let add = |i: usize| _mm256_add_epi32(dots[i], _mm256_madd_epi16(acc[i], ones));
                    *dots = [add(0), add(1)];
                }
            }
            for (r, ((dots, peaks), gain)) in dots.into_iter().zip(peaks).zip(gains).enumerate() {
                let factor = _mm256_set1_ps(peaks[s] * worth(*gain));
                let out = out[r * m.width + half * LANES / 2..].as_chunks_mut::<8>().0;
                for (out, dots) in out.iter_mut().zip(dots) {
                    store_f32(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), factor, load_f32(out)));
                }
            }
        }
    }
}

/// Weights times ratios as integers, four to a number.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn integers(weights: &[f32; LANES], ratios: &[f32; LANES], to: &mut [i32; LANES / 4]) {
    let dither = DITHER.as_chunks::<8>().0;
    let (weights, ratios) = (weights.as_chunks::<8>().0, ratios.as_chunks::<8>().0);
    let integers = |i: usize| {
        let sum = _mm256_fmadd_ps(load_f32(&weights[i]), load_f32(&ratios[i]), load_f32(&dither[i % 2]));
        _mm256_cvttps_epi32(sum)
    };
    let words = |i: usize| _mm256_packs_epi32(integers(i), integers(i + 1));
    let packed = _mm256_packus_epi16(words(0), words(2));
    // Each half of a register was packed by itself.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    // SAFETY: room for eight numbers; the store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_permutevar8x32_epi32(packed, order)) };
}
