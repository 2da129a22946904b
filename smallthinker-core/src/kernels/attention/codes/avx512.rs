//! With AVX-512 (F, BW, DQ, VL, VNNI).

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::avx512::{
    Element, ROWS, exp2_with, for_rows, greatest, load, load_line, load_rows, prefetch, store, store_line,
    store_rows,
};
use super::super::{EXP2_SHORT, HALF_BYTES, Line};
use super::{Coded, Functions, LANES, Mix, SQUARES, SUMS, Score, Softened, Square, Square4, short, units};

pub(in crate::kernels::attention) const FUNCTIONS: Functions = Functions {
    quantize,
    score: score::<Square>,
    score4: score::<Square4>,
    soften,
    mix,
    stretch: short::avx512::stretch,
    mix4: short::avx512::mix,
};

/// Squares of keys.
trait Keys: Coded {
    /// Four dimensions of 32 positions, [`Coded::OFFSET`] more than the codes. Only for CPUs with AVX-512.
    unsafe fn unsigned(&self, four: usize) -> [__m512i; 2];
}

impl Keys for Square {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn unsigned(&self, four: usize) -> [__m512i; 2] {
        let halves = self.codes[four * 4 * LANES..].as_chunks::<64>().0;
        // Turns the sign.
        let sign = _mm512_set1_epi8(-128);
        [_mm512_xor_si512(load_bytes(&halves[0]), sign), _mm512_xor_si512(load_bytes(&halves[1]), sign)]
    }
}

impl Keys for Square4 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn unsigned(&self, four: usize) -> [__m512i; 2] {
        let bytes = self.codes[four / 2 * HALF_BYTES..].as_chunks::<64>().0;
        let held = [load_bytes(&bytes[0]), load_bytes(&bytes[1])];
        let twice = _mm512_set1_epi8(30);
        let lower = |held| _mm512_and_si512(_mm512_slli_epi16::<1>(held), twice);
        let upper = |held| _mm512_and_si512(_mm512_srli_epi16::<3>(held), twice);
        if four.is_multiple_of(2) {
            [lower(held[0]), lower(held[1])]
        } else {
            [upper(held[0]), upper(held[1])]
        }
    }
}

/// Four positions of 32 dimensions of values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn values(square: &Square4, four: usize) -> [__m512i; 2] {
    let most = _mm512_set1_epi8(15);
    // SAFETY: this function has the target features that `unsigned` asks for.
    let codes = unsafe { square.unsigned(four) };
    [_mm512_sub_epi8(codes[0], most), _mm512_sub_epi8(codes[1], most)]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn quantize(x: &[f32], codes: &mut [[i8; LANES]], scales: &mut [f32], sums: &mut [i32]) {
    super::quantize(x, codes, scales, sums);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn score<S: Keys>(s: Score<'_, S>) {
    for_rows!(score_rows<S>(s))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn score_rows<S: Keys, const R: usize>(s: Score<'_, S>) {
    let Some(rows) = s.out.first_chunk_mut::<R>() else { return };
    let q = s.q.codes.as_chunks::<R>().0;
    // LANES / 4, which the compiler must not know: it would unroll the loop and then run out of registers.
    let fours = q.len() / s.parts;
    let (scales, offsets) = (s.q.scales.as_chunks::<R>().0, s.q.offsets.as_chunks::<R>().0);
    for (g, squares) in s.keys.chunks_exact(s.parts).enumerate() {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for (part, (((square, q), scales), offsets)) in
            squares.iter().zip(q.chunks_exact(fours)).zip(scales).zip(offsets).enumerate()
        {
            let next = s.ahead.square(g * s.parts + part).start;
            prefetch(next);
            let mut acc = [[_mm512_setzero_si512(); 2]; R];
            for (acc, offset) in acc.iter_mut().zip(offsets) {
                *acc = [_mm512_set1_epi32(*offset); 2];
            }
            let mut next = next.wrapping_add(size_of_val(square.scales()));
            for (pair, q) in q.as_chunks::<2>().0.iter().enumerate() {
                for (half, q) in q.iter().enumerate() {
                    next = request::<S>(next);
                    // Four dimensions of 16 positions each.
                    // SAFETY: this function has the target features that `unsigned` asks for.
                    let keys = unsafe { square.unsigned(2 * pair + half) };
                    for (acc, q) in acc.iter_mut().zip(q) {
                        let q = _mm512_set1_epi32(i32::from_le_bytes(q.map(|q| q as u8)));
                        *acc = [
                            _mm512_dpbusd_epi32(acc[0], keys[0], q),
                            _mm512_dpbusd_epi32(acc[1], keys[1], q),
                        ];
                    }
                }
            }
            let of_keys = widen_scales(square.scales());
            for ((acc, sums), scale) in acc.iter().zip(&mut sums).zip(scales) {
                let scale = _mm512_set1_ps(*scale);
                let add = |i: usize| {
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[i]), _mm512_mul_ps(of_keys[i], scale), sums[i])
                };
                *sums = [add(0), add(1)];
            }
        }
        let at = s.first / LANES + g;
        for (sums, row) in sums.into_iter().zip(&mut *rows) {
            store_line(&mut row.as_chunks_mut().0[at], sums);
        }
    }
}

/// Requests the bytes of 128 codes, which lie at this address; returns where the next do.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn request<S: Coded>(at: usize) -> usize {
    let end = at.wrapping_add((4 * LANES) >> S::SHIFT);
    prefetch(at);
    if S::SHIFT == 0 {
        prefetch(at.wrapping_add(64));
    }
    end
}

/// The scales of a square in single precision.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn widen_scales(scales: &[u16; LANES]) -> [__m512; 2] {
    // SAFETY: this function has the target features that `widen` asks for.
    unsafe { u16::widen(&Line(*scales)) }
}

/// 32 halves in single precision.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn widen(halves: __m512i) -> [__m512; 2] {
    [_mm512_cvtph_ps(_mm512_castsi512_si256(halves)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(halves))]
}

/// Which of these positions square number `square` holds, as bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn seen(positions: &Range<usize>, square: usize) -> u32 {
    let below = |end: usize| (1_u64 << end.saturating_sub(square * LANES).min(LANES)) - 1;
    (below(positions.end) & !below(positions.start)) as u32
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load_bytes<T>(x: &[T; 64]) -> __m512i {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: 64 initialised bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn soften(scores: &mut [f32], before: f32, sums: &mut [f32; SUMS]) -> Softened {
    let block = greatest(scores, f32::NEG_INFINITY);
    let mut of_block = _mm512_setzero_ps();
    for s in scores.as_chunks_mut::<SUMS>().0 {
        let weight = exp2_with(&EXP2_SHORT, _mm512_sub_ps(load(s), _mm512_set1_ps(block)));
        store(s, weight);
        of_block = _mm512_add_ps(of_block, weight);
    }
    let max = before.max(block);
    let shrink = exp2_with(&EXP2_SHORT, _mm512_set1_ps(before - max));
    let gain = exp2_with(&EXP2_SHORT, _mm512_set1_ps(block - max));
    store(sums, _mm512_fmadd_ps(of_block, gain, _mm512_mul_ps(load(sums), shrink)));
    Softened { max, shrink: _mm512_cvtss_f32(shrink), gain: _mm512_cvtss_f32(gain) }
}

/// Which pair of positions of a square each 32-bit lane of packed weights belongs to: `packs` takes four lanes of the
/// first 16 positions and four of the others in turn.
const PAIRS: [usize; LANES / 2] = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15];

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn mix(m: Mix<'_>) {
    for_rows!(mix_rows(m))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn mix_rows<const R: usize>(m: Mix<'_>) {
    let (Some(rows), Some(gains)) = (m.weights.first_chunk::<R>(), m.gains.first_chunk::<R>()) else {
        return;
    };
    let Some(weights) = m.integers.first_chunk_mut::<R>() else { return };
    let seen: [u32; SQUARES] = std::array::from_fn(|square| seen(&m.positions, square));
    let mut most = _mm512_setzero_si512();
    for (square, seen) in m.values.iter().zip(seen) {
        // SAFETY: 32 halves.
        let scales = unsafe { _mm512_maskz_loadu_epi16(seen, square.scales.as_ptr().cast()) };
        most = _mm512_max_epu16(most, scales);
    }
    let most = _mm256_max_epu16(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64::<1>(most));
    let most = _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
    // The least of the complements.
    let most = !(_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(most, _mm_set1_epi16(-1)))) as u16);
    let widened = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(most))));
    let Some((unit, inverse)) = units(most, widened) else { return };

    let inverse = _mm512_set1_ps(inverse);
    let some = m.positions.start / LANES..m.positions.end.div_ceil(LANES);
    for (s, (square, seen)) in m.values.iter().zip(seen).enumerate().take(some.end).skip(some.start) {
        let [a, b] = widen_scales(&square.scales);
        let a = _mm512_maskz_mul_ps(seen as u16, a, inverse);
        let b = _mm512_maskz_mul_ps((seen >> 16) as u16, b, inverse);
        for (weights, row) in weights.iter_mut().zip(rows) {
            let Some(w) = row[s * LANES..].first_chunk() else { return };
            let w = load_line(w);
            let [a, b] = [_mm512_mul_ps(w[0], a), _mm512_mul_ps(w[1], b)];
            let packed = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
            // SAFETY: room for 16 integers; the store needs no alignment.
            unsafe { _mm512_storeu_si512(weights[s].as_mut_ptr().cast(), packed) };
        }
    }

    let mut acc = [[_mm512_setzero_si512(); 2]; R];
    for (s, square) in some.clone().zip(&m.values[some]) {
        let next = m.ahead.square(s).start;
        prefetch(next);
        let next = next.wrapping_add(size_of_val(&square.scales));
        let pairs = square.codes.as_chunks::<{ 2 * LANES }>().0;
        for (i, pair) in PAIRS.into_iter().enumerate() {
            let codes = &pairs[pair];
            prefetch(next.wrapping_add(pair * size_of_val(codes)));
            let at = codes.as_ptr();
            // SAFETY: 32 bytes from each address, all inside the pair.
            let codes = unsafe { [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(LANES).cast())] };
            let values = [_mm512_cvtepi8_epi16(codes[0]), _mm512_cvtepi8_epi16(codes[1])];
            for (acc, weights) in acc.iter_mut().zip(&*weights) {
                let weight = _mm512_set1_epi32(weights[s][i]);
                *acc = [
                    _mm512_dpwssd_epi32(acc[0], values[0], weight),
                    _mm512_dpwssd_epi32(acc[1], values[1], weight),
                ];
            }
        }
    }

    let mut out = load_rows::<R>(m.out, m.width);
    for ((out, acc), gain) in out.iter_mut().zip(acc).zip(gains) {
        let factor = _mm512_set1_ps(unit * *gain);
        let add = |i: usize| _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[i]), factor, out[i]);
        *out = [add(0), add(1)];
    }
    store_rows(m.out, m.width, &out);
}
