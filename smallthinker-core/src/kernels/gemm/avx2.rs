//! Panels and their product with AVX2: eight rows of a panel and up to four vectors at a time.

use std::arch::x86_64::*;

use super::panel::{self, PanelBlock, PanelSource};
use super::tiles::TokenBlock;
use super::{Gemm, LANES, Product, residue_counts, residue_starts};
use crate::kernels::avx2::{load, load_f32, load_half, store_f32};

pub(in crate::kernels) const AVX2: Gemm = Gemm { unpack_lanes, unpack_down, multiply };

/// The low and the high halves of 32 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(x: __m256i) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(15);
    [_mm256_and_si256(x, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(x), mask)]
}

/// Stores rows `8 half .. 8 half + 8` of some codes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn put(codes: &mut [u8; 64], half: usize, x: __m256i) {
    if let Some(out) = codes.as_chunks_mut::<32>().0.get_mut(half) {
        // SAFETY: room for 32 bytes; the store needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) }
    }
}

/// As [`panel::unpack_lanes`].
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_lanes(w: &PanelSource<'_>, row: usize, panel: &mut [PanelBlock]) {
    if row + LANES > w.rows {
        return panel::unpack_lanes::<0>(w, row, panel);
    }
    let blocks = w.blocks();
    let starts = residue_starts(blocks);
    let rows: [_; LANES] = std::array::from_fn(|r| w.lanes_row(row + r));
    for g in 0..w.groups() {
        let present = 8.min(blocks - 8 * g);
        let mut codes: [&[[u8; 16]]; LANES] = [&[]; LANES];
        for r in 0..LANES {
            let (Some(c), Some(s)) = (rows[r].0.get(g), rows[r].1.get(g)) else { return };
            codes[r] = c.as_chunks().0;
            let mut scales = [0.0; 8];
            store_f32(&mut scales, _mm256_cvtph_ps(load_half(s)));
            for (i, scale) in (0..present).zip(scales) {
                if let Some(out) = panel.get_mut(starts[i] + g) {
                    out.scale[r] = scale;
                }
            }
        }
        // Transposes four rows of four 32-bit columns in each half vector, of rows `j` and `4 + j`.
        for part in 0..16 {
            let (k, side, half) = (part / 4, part / 2 % 2, part % 2);
            let at = 2 * k + side;
            let [a, b, c, d] = [0, 1, 2, 3].map(|j| {
                let low = load_half(&codes[8 * half + j][at]);
                _mm256_inserti128_si256::<1>(
                    _mm256_castsi128_si256(low),
                    load_half(&codes[8 * half + 4 + j][at]),
                )
            });
            let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
            let columns = [
                _mm256_unpacklo_epi64(ab, cd),
                _mm256_unpackhi_epi64(ab, cd),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ];
            for (i, column) in (4 * side..present).zip(columns) {
                let Some(out) = panel.get_mut(starts[i] + g) else { continue };
                let [low, high] = nibbles(column);
                put(&mut out.codes[k], half, low);
                put(&mut out.codes[4 + k], half, high);
            }
        }
    }
}

/// As [`panel::unpack_down`].
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_down(w: &PanelSource<'_>, tile: usize, panels: &mut [PanelBlock]) {
    let blocks = w.blocks();
    let starts = residue_starts(blocks);
    for (b, (scales, codes)) in w.down_tile(tile).enumerate() {
        let place = starts[b % 8] + b / 8;
        for (p, scales) in scales.iter().enumerate() {
            let Some(out) = panels.get_mut(p * blocks + place) else { continue };
            let eights = out.scale.as_chunks_mut::<8>().0.iter_mut();
            for (out, halves) in eights.zip(scales.as_chunks::<16>().0) {
                store_f32(out, _mm256_cvtph_ps(load_half(halves)));
            }
        }
        for (quad, columns) in codes.as_chunks::<4>().0.iter().enumerate() {
            for half in 0..2 {
                let [a, b, c, d] = columns.each_ref().map(|c| load(&c.as_chunks::<32>().0[half]));
                let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
                let (ab_high, cd_high) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
                let rows = [
                    _mm256_unpacklo_epi16(ab, cd),
                    _mm256_unpackhi_epi16(ab, cd),
                    _mm256_unpacklo_epi16(ab_high, cd_high),
                    _mm256_unpackhi_epi16(ab_high, cd_high),
                ];
                for (m, rows) in rows.into_iter().enumerate() {
                    let [low, high] = nibbles(rows);
                    for (p, x) in [(m, low), (4 + m, high)] {
                        if let Some(out) = panels.get_mut(p * blocks + place) {
                            put(&mut out.codes[quad], half, x);
                        }
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply(mut p: Product<'_>) {
    let blocks = p.panel.len();
    for (tile, tokens) in p.tokens.chunks_exact(blocks).enumerate() {
        // As even as possible: four of five vectors alone would leave the fifth to a slow pass.
        let passes = p.per_tile.div_ceil(4);
        let mut from = 0;
        for pass in 0..passes {
            let count = (p.per_tile - from).div_ceil(passes - pass);
            for half in 0..2 {
                let first = tile * p.per_tile + from;
                match count {
                    1 => part::<1>(&mut p, tokens, from, half, first),
                    2 => part::<2>(&mut p, tokens, from, half, first),
                    3 => part::<3>(&mut p, tokens, from, half, first),
                    _ => part::<4>(&mut p, tokens, from, half, first),
                }
            }
            from += count;
        }
    }
}

/// Rows `8 half .. 8 half + 8` times vectors `from .. from + M` of a tile, which are vectors `first ..` of all.
#[target_feature(enable = "avx2,fma,f16c")]
fn part<const M: usize>(p: &mut Product<'_>, tokens: &[TokenBlock], from: usize, half: usize, first: usize) {
    let mut pairs = p.panel.iter().zip(tokens);
    let sums = residue_counts(p.panel.len()).map(|count| {
        let mut acc = [_mm256_setzero_ps(); M];
        for (w, x) in pairs.by_ref().take(count) {
            block(w, x, from, half, &mut acc);
        }
        acc
    });
    for m in 0..M {
        let [a0, a4, a2, a6, a1, a5, a3, a7] = sums.map(|sum| sum[m]);
        let even = _mm256_add_ps(_mm256_add_ps(a0, a4), _mm256_add_ps(a2, a6));
        let odd = _mm256_add_ps(_mm256_add_ps(a1, a5), _mm256_add_ps(a3, a7));
        let mut values = [0.0; 8];
        store_f32(&mut values, _mm256_add_ps(even, odd));
        let width = p.width.saturating_sub(8 * half).min(8);
        let at = (first + m) * p.stride + 8 * half;
        if let (Some(out), Some(values)) = (p.out.get_mut(at..at + width), values.get(..width)) {
            out.copy_from_slice(values);
        }
    }
}

/// Adds the products of a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn block<const M: usize>(w: &PanelBlock, x: &TokenBlock, from: usize, half: usize, acc: &mut [__m256; M]) {
    let (Some(q), Some(scales), Some(offsets)) = (
        x.q.get(from..).and_then(|q| q.first_chunk::<M>()),
        x.scale.get(from..).and_then(|s| s.first_chunk::<M>()),
        x.offset.get(from..).and_then(|o| o.first_chunk::<M>()),
    ) else {
        return;
    };
    // Sums of eight pairs of products are at most 8 · 2 · 15 · 127 = 30480: they fit 16 bits.
    let mut dots = [_mm256_setzero_si256(); M];
    for (k, codes) in w.codes.iter().enumerate() {
        let Some(codes) = codes.as_chunks::<32>().0.get(half) else { return };
        let codes = load(codes);
        for m in 0..M {
            let four = i32::from_le_bytes(q[m].as_chunks::<4>().0[k].map(|q| q as u8));
            dots[m] = _mm256_add_epi16(dots[m], _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four)));
        }
    }
    let Some(scale) = w.scale.as_chunks::<8>().0.get(half) else { return };
    let scale = load_f32(scale);
    for m in 0..M {
        let dot = _mm256_madd_epi16(dots[m], _mm256_set1_epi16(1));
        let dot = _mm256_cvtepi32_ps(_mm256_add_epi32(dot, _mm256_set1_epi32(offsets[m])));
        acc[m] = _mm256_fmadd_ps(dot, _mm256_mul_ps(scale, _mm256_set1_ps(scales[m])), acc[m]);
    }
}
