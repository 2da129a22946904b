//! With AVX2, FMA and F16C: products of 16-bit integers, or of bytes where keys have 4 bits.

use std::arch::x86_64::*;

use super::super::EXP2_SHORT;
use super::super::avx2::{ROWS, exp2_with, for_rows, greatest, prefetch};
use super::{Functions, LANES, Mix, SQUARES, SUMS, Score, Softened, Square, Square4, short, units};
use crate::kernels::avx2::{load, load_f32, load_half, store_f32};

pub(in crate::kernels::attention) const FUNCTIONS: Functions =
    Functions { quantize, score, score4, soften, mix, stretch: short::avx2::stretch, mix4: short::avx2::mix };

impl Square4 {
    /// The lower and the upper halves of one half of the bytes of a part.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn halves(&self, part: usize, half: usize) -> [[__m256i; 2]; 2] {
        let bytes = self.codes[(part * 2 + half) * 64..].as_chunks::<32>().0;
        let held = [load(&bytes[0]), load(&bytes[1])];
        let lower = |held| _mm256_and_si256(held, _mm256_set1_epi8(15));
        let upper = |held| lower(_mm256_srli_epi16::<4>(held));
        [[lower(held[0]), lower(held[1])], [upper(held[0]), upper(held[1])]]
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize(x: &[f32], codes: &mut [[i8; LANES]], scales: &mut [f32], sums: &mut [i32]) {
    super::quantize(x, codes, scales, sums);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn score(mut s: Score<'_, Square>) {
    for_rows!(score_rows(s); 1 2 3 4 5);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn score_rows<const R: usize>(s: &mut Score<'_, Square>, from: usize) {
    let Some(rows) = s.out[from..].first_chunk_mut::<R>() else { return };
    for part in 0..s.parts {
        // Four 16-bit codes in 64 bits.
        let mut q = [[0_i64; R]; LANES / 4];
        for (k, q) in q.iter_mut().enumerate() {
            let codes = &s.q.codes[(part * LANES / 4 + k) * s.rows + from..];
            for (q, codes) in q.iter_mut().zip(codes) {
                let codes = _mm_cvtepi8_epi16(_mm_cvtsi32_si128(i32::from_le_bytes(codes.map(|c| c as u8))));
                *q = _mm_cvtsi128_si64(codes);
            }
        }
        for (g, squares) in s.keys.chunks_exact(s.parts).enumerate() {
            if from + part == 0 {
                (0..s.parts).for_each(|i| prefetch(s.ahead.square(g * s.parts + i)));
            }
            let square = &squares[part];
            let at = s.first + g * LANES;
            for (eight, of_keys) in square.scales.as_chunks::<8>().0.iter().enumerate() {
                // Each vector holds four positions, a pair of lanes for each.
                let mut acc = [[_mm256_setzero_si256(); 2]; R];
                for (q, keys) in q.iter().zip(square.codes.as_chunks::<{ 4 * LANES }>().0) {
                    let keys = keys[eight * 32..].as_chunks::<16>().0;
                    let keys = [
                        _mm256_cvtepi8_epi16(load_half(&keys[0])),
                        _mm256_cvtepi8_epi16(load_half(&keys[1])),
                    ];
                    for (acc, q) in acc.iter_mut().zip(q) {
                        let q = _mm256_set1_epi64x(*q);
                        let add = |i: usize| _mm256_add_epi32(acc[i], _mm256_madd_epi16(keys[i], q));
                        *acc = [add(0), add(1)];
                    }
                }
                let of_keys = _mm256_cvtph_ps(load_half(of_keys));
                let at = at + eight * 8;
                for (r, (acc, row)) in acc.iter().zip(&mut *rows).enumerate() {
                    let Some(sums) = row[at..].first_chunk_mut::<8>() else { return };
                    let before = if part == 0 { _mm256_setzero_ps() } else { load_f32(sums) };
                    let dots = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(acc[0], acc[1]));
                    let scale = _mm256_set1_ps(s.q.scales[part * s.rows + from + r]);
                    let scale = _mm256_mul_ps(of_keys, scale);
                    store_f32(sums, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, before));
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn score4(mut s: Score<'_, Square4>) {
    for_rows!(score4_rows(s); 1 2 3 4 5);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn score4_rows<const R: usize>(s: &mut Score<'_, Square4>, from: usize) {
    let Some(rows) = s.out[from..].first_chunk_mut::<R>() else { return };
    let ones = _mm256_set1_epi16(1);
    for part in 0..s.parts {
        let mut room = [[0; R]; LANES / 4];
        // All of them, which the compiler must not know: it would unroll the loop and then run out of registers.
        let q = &mut room[..s.q.codes.len() / (s.parts * s.rows)];
        for (k, q) in q.iter_mut().enumerate() {
            let codes = &s.q.codes[(part * LANES / 4 + k) * s.rows + from..];
            q.iter_mut().zip(codes).for_each(|(q, codes)| *q = i32::from_le_bytes(codes.map(|c| c as u8)));
        }
        for (g, squares) in s.keys.chunks_exact(s.parts).enumerate() {
            if from + part == 0 {
                (0..s.parts).for_each(|i| prefetch(s.ahead.square(g * s.parts + i)));
            }
            let square = &squares[part];
            for half in 0..2 {
                // Eight times two products of 15 and 127 fit 16 bits: 30,480.
                let mut acc = [[_mm256_setzero_si256(); 2]; R];
                for (pair, q) in q.as_chunks::<2>().0.iter().enumerate() {
                    for (keys, q) in square.halves(pair, half).into_iter().zip(q) {
                        for (acc, q) in acc.iter_mut().zip(q) {
                            let q = _mm256_set1_epi32(*q);
                            let add = |i: usize| _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(keys[i], q));
                            *acc = [add(0), add(1)];
                        }
                    }
                }
                let at = s.first + g * LANES + half * LANES / 2;
                let of_keys = square.scales[half * LANES / 2..].as_chunks::<8>().0;
                for (r, (acc, row)) in acc.iter().zip(&mut *rows).enumerate() {
                    let place = part * s.rows + from + r;
                    let offset = _mm256_set1_epi32(s.q.offsets[place]);
                    let scale = _mm256_set1_ps(s.q.scales[place]);
                    let sums = row[at..at + LANES / 2].as_chunks_mut::<8>().0;
                    for ((sums, acc), of_keys) in sums.iter_mut().zip(acc).zip(of_keys) {
                        // Codes are twice what is held, minus 15.
                        let dots = _mm256_slli_epi32::<1>(_mm256_madd_epi16(*acc, ones));
                        let dots = _mm256_cvtepi32_ps(_mm256_add_epi32(dots, offset));
                        let before = if part == 0 { _mm256_setzero_ps() } else { load_f32(sums) };
                        let scale = _mm256_mul_ps(_mm256_cvtph_ps(load_half(of_keys)), scale);
                        store_f32(sums, _mm256_fmadd_ps(dots, scale, before));
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn soften(scores: &mut [f32], before: f32, sums: &mut [f32; SUMS]) -> Softened {
    let exp2 = |x| exp2_with(&EXP2_SHORT, x);
    let block = greatest(scores, f32::NEG_INFINITY);
    let max = before.max(block);
    let [shrink, gain] = [before, block].map(|m| exp2(_mm256_set1_ps(m - max)));
    let mut of_block = [_mm256_setzero_ps(); 2];
    for scores in scores.as_chunks_mut::<SUMS>().0 {
        for (scores, of_block) in scores.as_chunks_mut::<8>().0.iter_mut().zip(&mut of_block) {
            let weights = exp2(_mm256_sub_ps(load_f32(scores), _mm256_set1_ps(block)));
            store_f32(scores, weights);
            *of_block = _mm256_add_ps(*of_block, weights);
        }
    }
    for (sums, of_block) in sums.as_chunks_mut::<8>().0.iter_mut().zip(of_block) {
        let shrunk = _mm256_mul_ps(load_f32(sums), shrink);
        store_f32(sums, _mm256_fmadd_ps(of_block, gain, shrunk));
    }
    Softened { max, shrink: _mm256_cvtss_f32(shrink), gain: _mm256_cvtss_f32(gain) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn mix(m: Mix<'_>) {
    let mut ones = [[[0_f32; 8]; LANES / 8]; SQUARES];
    let positions = m.positions.clone();
    let of = |p: usize| m.values[p / LANES].scales[p % LANES];
    let greatest = positions.clone().fold(0, |most, p| most.max(of(p)));
    let widened = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(greatest))));
    let Some((unit, inverse)) = units(greatest, widened) else { return };
    for (ones, square) in ones.iter_mut().zip(m.values) {
        for (ones, scales) in ones.iter_mut().zip(square.scales.as_chunks::<8>().0) {
            store_f32(ones, _mm256_mul_ps(_mm256_cvtph_ps(load_half(scales)), _mm256_set1_ps(inverse)));
        }
    }
    let flat = ones.as_flattened_mut().as_flattened_mut();
    flat[..positions.start].fill(0.0);
    flat[positions.end..].fill(0.0);
    let mut b = Block { rows: m.rows, ones: &ones, unit, m };
    for_rows!(mix_rows(b); 1 2 3 4 5);
}

/// What all rows share.
struct Block<'a> {
    rows: usize,
    /// What a weight of 1 is in integers, for each position; 0 for those that are not seen.
    ones: &'a [[[f32; 8]; LANES / 8]; SQUARES],
    unit: f32,
    m: Mix<'a>,
}

#[target_feature(enable = "avx2,fma,f16c")]
fn mix_rows<const R: usize>(b: &mut Block<'_>, from: usize) {
    let m = &mut b.m;
    let (Some(rows), Some(gains)) =
        (m.weights[from..].first_chunk::<R>(), m.gains[from..].first_chunk::<R>())
    else {
        return;
    };
    let out = &mut m.out[from * m.width..];
    // In the order in which `packs` leaves them: pairs 0, 1, 4, 5, 2, 3, 6, 7 of 16 positions.
    let Some(weights) = m.integers[from..].first_chunk_mut::<R>() else { return };
    for (weights, row) in weights.iter_mut().zip(rows) {
        let weights = weights.as_flattened_mut().as_chunks_mut::<8>().0;
        let ones = b.ones.as_flattened().as_chunks::<2>().0;
        for ((weights, w), ones) in weights.iter_mut().zip(row.as_chunks::<16>().0).zip(ones) {
            let w = w.as_chunks::<8>().0;
            let integers = |i: usize| _mm256_cvtps_epi32(_mm256_mul_ps(load_f32(&w[i]), load_f32(&ones[i])));
            let packed = _mm256_packs_epi32(integers(0), integers(1));
            // SAFETY: room for eight integers; the store needs no alignment.
            unsafe { _mm256_storeu_si256(weights.as_mut_ptr().cast(), packed) };
        }
    }
    let some = m.positions.start / LANES..m.positions.end.div_ceil(LANES);
    for half in 0..2 {
        let mut acc = [[_mm256_setzero_si256(); 2]; R];
        for s in some.clone() {
            if from + half == 0 {
                prefetch(m.ahead.square(s));
            }
            let pairs = m.values[s].codes.as_chunks::<{ 2 * LANES }>().0;
            for (i, pair) in PAIRS.into_iter().enumerate() {
                let codes = pairs[pair][half * LANES..].as_chunks::<16>().0;
                let values =
                    [_mm256_cvtepi8_epi16(load_half(&codes[0])), _mm256_cvtepi8_epi16(load_half(&codes[1]))];
                for (acc, weights) in acc.iter_mut().zip(&*weights) {
                    let weight = _mm256_set1_epi32(weights[s][i]);
                    let add = |i: usize| _mm256_add_epi32(acc[i], _mm256_madd_epi16(values[i], weight));
                    *acc = [add(0), add(1)];
                }
            }
        }
        for (r, (acc, gain)) in acc.into_iter().zip(gains).enumerate() {
            let factor = _mm256_set1_ps(b.unit * *gain);
            let out = out[r * m.width + half * LANES / 2..].as_chunks_mut::<8>().0;
            for (out, acc) in out.iter_mut().zip(acc) {
                store_f32(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), factor, load_f32(out)));
            }
        }
    }
}

/// Which pair of positions of a square each 32-bit lane of packed weights belongs to.
const PAIRS: [usize; LANES / 2] = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
