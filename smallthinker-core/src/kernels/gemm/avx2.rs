//! Panels and their product with AVX2: eight rows of a panel and up to four vectors at a time.

use std::arch::x86_64::*;

use super::panel::{self, PanelBlock, PanelSource};
use super::tiles::TokenBlock;
use super::{Gemm, LANES, Product, residue_counts, residue_starts};
use crate::kernels::avx2::{load, load_f32, load_half, store_f32};
use crate::kernels::lanes::Row;

pub(in crate::kernels) const AVX2: Gemm = Gemm { unpack_lanes, unpack_down, multiply, few: None };

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

/// Code bytes of a group of eight blocks: entry `2 k + h` has codes `k` and `4 + k` of blocks `4 h ..`.
type Codes = [[u8; 16]; 8];

/// As [`panel::unpack_lanes`].
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_lanes(w: &PanelSource<'_>, row: usize, panel: &mut [PanelBlock]) {
    if row + LANES > w.rows {
        return panel::unpack_lanes::<0>(w, row, panel);
    }
    let blocks = w.blocks();
    let starts = residue_starts(blocks);
    for half in 0..2 {
        let mut rows: [Row<'_>; 8] = [(&[], &[]); 8];
        for (r, place) in rows.iter_mut().enumerate() {
            *place = w.lanes_row(row + 8 * half + r);
        }
        for g in 0..w.groups() {
            let mut codes: [&Codes; 8] = [&[[0; 16]; 8]; 8];
            for r in 0..8 {
                let (Some(c), Some(s)) = (rows[r].0.get(g), rows[r].1.get(g)) else { return };
                if let Some(c) = c.as_chunks().0.first_chunk() {
                    codes[r] = c;
                }
                let mut scales = [0.0; 8];
                store_f32(&mut scales, _mm256_cvtph_ps(load_half(s)));
                for (i, scale) in scales.into_iter().enumerate().take(blocks - 8 * g) {
                    if let Some(out) = panel.get_mut(starts[i] + g) {
                        out.scale[8 * half + r] = scale;
                    }
                }
            }
            for part in 0..8 {
                for (i, column) in transpose_codes(&codes, part).into_iter().enumerate() {
                    let b = 4 * (part % 2) + i;
                    if 8 * g + b >= blocks {
                        break;
                    }
                    let Some(out) = panel.get_mut(starts[b] + g) else { return };
                    let [low, high] = nibbles(column);
                    put(&mut out.codes[part / 2], half, low);
                    put(&mut out.codes[4 + part / 2], half, high);
                }
            }
        }
    }
}

/// Rows `j` and `4 + j`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halves(low: &[u8; 16], high: &[u8; 16]) -> __m256i {
    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load_half(low)), load_half(high))
}

/// Entry `part` of eight rows, block by block: four bytes of each row, rows ascending.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transpose_codes(rows: &[&Codes; 8], part: usize) -> [__m256i; 4] {
    // Transposes four rows of four 32-bit columns in each half.
    let (a, b) = (halves(&rows[0][part], &rows[4][part]), halves(&rows[1][part], &rows[5][part]));
    let (c, d) = (halves(&rows[2][part], &rows[6][part]), halves(&rows[3][part], &rows[7][part]));
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
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
                let mut parts = [_mm256_setzero_si256(); 4];
                for (part, column) in parts.iter_mut().zip(columns) {
                    if let Some(column) = column.as_chunks::<32>().0.get(half) {
                        *part = load(column);
                    }
                }
                let [a, b, c, d] = parts;
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
fn multiply(mut p: Product<'_, '_>) {
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
fn part<const M: usize>(
    p: &mut Product<'_, '_>,
    tokens: &[TokenBlock],
    from: usize,
    half: usize,
    first: usize,
) {
    let mut pairs = p.panel.iter().zip(tokens);
    let mut sums = [[_mm256_setzero_ps(); M]; 8];
    for (count, acc) in residue_counts(p.panel.len()).into_iter().zip(&mut sums) {
        for (w, x) in pairs.by_ref().take(count) {
            block(w, x, from, half, acc);
        }
    }
    for m in 0..M {
        let [a0, a4, a2, a6, a1, a5, a3, a7] = sums.each_ref().map(|sum| sum[m]);
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
            let [a, b, c, d] = q[m].as_chunks::<4>().0[k];
            let four = _mm256_set1_epi32(i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]));
            dots[m] = _mm256_add_epi16(dots[m], _mm256_maddubs_epi16(codes, four));
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
