//! Panels and their product with AVX-512 and its byte dot product (VNNI).

use std::arch::x86_64::*;

use super::panel::{self, PanelBlock, PanelSource};
use super::tiles::TokenBlock;
use super::{Ahead, Gemm, LANES, Product, residue_counts, residue_starts};
use crate::kernels::lanes::Row;
use crate::tensor::block::SUB;

pub(in crate::kernels) const AVX512: Gemm =
    Gemm { unpack_lanes: unpack_lanes::<0>, unpack_down: unpack_down::<0>, multiply, few: None };

/// Loads 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load(x: &[u8; 64]) -> __m512i {
    // SAFETY: 64 initialised bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

/// Stores 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn store(out: &mut [u8; 64], x: __m512i) {
    // SAFETY: room for 64 bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) }
}

/// Loads sixteen floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn load_f32(x: &[f32; 16]) -> __m512 {
    // SAFETY: sixteen floats; the load needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

/// Loads 16 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load_quarter(x: &[u8; 16]) -> __m128i {
    // SAFETY: 16 initialised bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

/// Four times 16 bytes, the first lowest.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn quarters(x: [&[u8; 16]; 4]) -> __m512i {
    // Broadcasts under a mask can load from memory, where inserts would shuffle.
    let all = _mm512_castsi128_si512(load_quarter(x[0]));
    let all = _mm512_mask_broadcast_i32x4(all, 0x00f0, load_quarter(x[1]));
    let all = _mm512_mask_broadcast_i32x4(all, 0x0f00, load_quarter(x[2]));
    _mm512_mask_broadcast_i32x4(all, 0xf000, load_quarter(x[3]))
}

/// The low and the high halves of 64 bytes, less the bias.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn nibbles<const BIAS: u8>(x: __m512i) -> [__m512i; 2] {
    let mask = _mm512_set1_epi8(15);
    let [low, high] = [_mm512_and_si512(x, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(x), mask)];
    if BIAS == 0 {
        return [low, high];
    }
    let bias = _mm512_set1_epi8(BIAS as i8);
    [_mm512_sub_epi8(low, bias), _mm512_sub_epi8(high, bias)]
}

/// Stores codes `k` (from the low) and `4 + k` (from the high halves) of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn put<const BIAS: u8>(codes: &mut [[u8; 64]; 8], low: usize, high: usize, x: __m512i) {
    let [l, h] = nibbles::<BIAS>(x);
    store(&mut codes[low], l);
    store(&mut codes[high], h);
}

/// Code bytes of a group of eight blocks: entry `2 k + h` has codes `k` and `4 + k` of blocks `4 h ..`.
type Codes = [[u8; 16]; 8];

/// As [`panel::unpack_lanes`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn unpack_lanes<const BIAS: u8>(w: &PanelSource<'_>, row: usize, panel: &mut [PanelBlock]) {
    if row + LANES > w.rows {
        return panel::unpack_lanes::<BIAS>(w, row, panel);
    }
    let blocks = w.blocks();
    let starts = residue_starts(blocks);
    let mut rows: [Row<'_>; LANES] = [(&[], &[]); LANES];
    for (r, place) in rows.iter_mut().enumerate() {
        *place = w.lanes_row(row + r);
    }
    for g in 0..w.groups() {
        let mut codes: [&Codes; LANES] = [&[[0; 16]; 8]; LANES];
        let mut scales: [&[u8; 16]; LANES] = [&[0; 16]; LANES];
        for r in 0..LANES {
            let (Some(c), Some(s)) = (rows[r].0.get(g), rows[r].1.get(g)) else { return };
            if let Some(c) = c.as_chunks().0.first_chunk() {
                (codes[r], scales[r]) = (c, s);
            }
        }
        let scales = transpose_scales(&scales);
        for half in 0..2 {
            let low = [
                transpose_codes(&codes, half),
                transpose_codes(&codes, 2 + half),
                transpose_codes(&codes, 4 + half),
                transpose_codes(&codes, 6 + half),
            ];
            for i in 0..4 {
                let b = 4 * half + i;
                if 8 * g + b >= blocks {
                    break;
                }
                let Some(out) = panel.get_mut(starts[b] + g) else { return };
                out.scale = scales[b];
                for (k, columns) in low.iter().enumerate() {
                    put::<BIAS>(&mut out.codes, k, 4 + k, columns[i]);
                }
            }
        }
    }
}

/// Entry `part` of sixteen rows, block by block: four bytes of each row, rows ascending.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn transpose_codes(rows: &[&Codes; LANES], part: usize) -> [__m512i; 4] {
    // Transposes four rows of four 32-bit columns in each quarter. Row `4 l + j` is quarter `l` of vector `j`,
    // which makes the rows ascend in the results.
    let a = quarters([&rows[0][part], &rows[4][part], &rows[8][part], &rows[12][part]]);
    let b = quarters([&rows[1][part], &rows[5][part], &rows[9][part], &rows[13][part]]);
    let c = quarters([&rows[2][part], &rows[6][part], &rows[10][part], &rows[14][part]]);
    let d = quarters([&rows[3][part], &rows[7][part], &rows[11][part], &rows[15][part]]);
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// From the halves of eight blocks for each of sixteen rows, the scales of each block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn transpose_scales(rows: &[&[u8; 16]; LANES]) -> [[f32; LANES]; 8] {
    let a = quarters([rows[0], rows[4], rows[8], rows[12]]);
    let b = quarters([rows[1], rows[5], rows[9], rows[13]]);
    let c = quarters([rows[2], rows[6], rows[10], rows[14]]);
    let d = quarters([rows[3], rows[7], rows[11], rows[15]]);
    let (ab, cd) = (_mm512_unpacklo_epi16(a, b), _mm512_unpacklo_epi16(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi16(a, b), _mm512_unpackhi_epi16(c, d));
    // In each quarter: four rows of a block, then four of the next.
    let pairs = [
        _mm512_unpacklo_epi32(ab, cd),
        _mm512_unpackhi_epi32(ab, cd),
        _mm512_unpacklo_epi32(ab_high, cd_high),
        _mm512_unpackhi_epi32(ab_high, cd_high),
    ];
    let mut out = [[0.0; LANES]; 8];
    for (pair, out) in pairs.into_iter().zip(out.as_chunks_mut::<2>().0) {
        let pair = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), pair);
        put_scales(&mut out[0], _mm512_castsi512_si256(pair));
        put_scales(&mut out[1], _mm512_extracti64x4_epi64::<1>(pair));
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn put_scales(out: &mut [f32; LANES], halves: __m256i) {
    // SAFETY: room for sixteen floats; the store needs no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(halves)) }
}

/// As [`panel::unpack_down`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn unpack_down<const BIAS: u8>(w: &PanelSource<'_>, tile: usize, panels: &mut [PanelBlock]) {
    let blocks = w.blocks();
    let starts = residue_starts(blocks);
    for (b, (scales, codes)) in w.down_tile(tile).enumerate() {
        let place = starts[b % 8] + b / 8;
        for (p, scales) in scales.iter().enumerate() {
            if let Some(out) = panels.get_mut(p * blocks + place) {
                // SAFETY: 32 initialised bytes; the load needs no alignment.
                put_scales(&mut out.scale, unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) });
            }
        }
        for (quad, columns) in codes.as_chunks::<4>().0.iter().enumerate() {
            let [a, b, c, d] = columns;
            let (a, b, c, d) = (load(a), load(b), load(c), load(d));
            let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
            let rows = [
                _mm512_unpacklo_epi16(ab, cd),
                _mm512_unpackhi_epi16(ab, cd),
                _mm512_unpacklo_epi16(ab_high, cd_high),
                _mm512_unpackhi_epi16(ab_high, cd_high),
            ];
            for (m, rows) in rows.into_iter().enumerate() {
                let [low, high] = nibbles::<BIAS>(rows);
                for (p, x) in [(m, low), (4 + m, high)] {
                    if let Some(out) = panels.get_mut(p * blocks + place) {
                        store(&mut out.codes[quad], x);
                    }
                }
            }
        }
    }
}

/// Sums of up to sixteen vectors with sixteen rows, through the blocks of all residues.
///
/// Keeps what [`RESIDUES`](super::RESIDUES) says is to be added later.
pub(super) struct Sums<const M: usize> {
    waiting: [[__m512; M]; 3],
    residue: usize,
}

impl<const M: usize> Sums<M> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) fn new() -> Self {
        Sums { waiting: [[_mm512_setzero_ps(); M]; 3], residue: 0 }
    }

    /// Takes over the sums of the next residue, and leaves zeros; after the last one leaves the products.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) fn add(&mut self, acc: &mut [__m512; M]) -> bool {
        let mut level = 0;
        while let Some(waiting) = self.waiting.get_mut(level) {
            if self.residue >> level & 1 == 0 {
                *waiting = *acc;
                *acc = [_mm512_setzero_ps(); M];
                self.residue += 1;
                return false;
            }
            for (acc, waiting) in acc.iter_mut().zip(waiting) {
                *acc = _mm512_add_ps(*waiting, *acc);
            }
            level += 1;
        }
        self.residue = 0;
        true
    }
}

/// Asks for the places of the sums of vectors `first ..`, which lie in as many pages.
#[inline]
#[allow(unused_unsafe)] // the intrinsic became safe after our oldest supported compiler
pub(super) fn expect_sums<const M: usize>(p: &Product<'_, '_>, first: usize) {
    for m in 0..M {
        let at = p.out.as_ptr().wrapping_add((first + m) * p.stride);
        // SAFETY: a prefetch is a hint; it does not access memory that isn't mapped and never faults.
        unsafe {
            _mm_prefetch::<_MM_HINT_ET0>(at.cast());
            _mm_prefetch::<_MM_HINT_ET0>(at.wrapping_add(p.width - 1).cast());
        }
    }
}

/// Asks for the share of a block of the weights that come next.
#[inline]
#[allow(unused_unsafe)] // the intrinsic became safe after our oldest supported compiler
pub(super) fn ask_ahead(ahead: &mut Ahead<'_>) {
    for _ in 0..ahead.per_block {
        let Some(line) = ahead.next() else { break };
        // SAFETY: a prefetch is a hint.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(line).cast()) };
    }
}

/// Stores the sums of vectors `first ..` of a product.
///
/// # Safety
/// `p` keeps what [`Product`] asks for and has vectors up to `first + M`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn put_sums<const M: usize>(p: &mut Product<'_, '_>, first: usize, acc: &[__m512; M]) {
    let wanted = (u32::MAX >> (32 - p.width)) as u16;
    debug_assert!((first + M - 1) * p.stride + p.width <= p.out.len());
    for (m, acc) in acc.iter().enumerate() {
        // SAFETY: the caller's promise; the mask leaves out what lies beyond `width`.
        unsafe { _mm512_mask_storeu_ps(p.out.as_mut_ptr().add((first + m) * p.stride), wanted, *acc) };
    }
}

/// Calls `$function::<M>` for the number of vectors `$m`, which is in 1..=16.
macro_rules! for_each_size {
    ($m:expr, $function:ident, $argument:expr) => {
        for_each_size!($m, $function, $argument, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($m:expr, $function:ident, $argument:expr, $($size:literal)+) => {
        match $m {
            $($size => $function::<$size>($argument),)+
            _ => $function::<16>($argument),
        }
    };
}
pub(super) use for_each_size;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn multiply(p: Product<'_, '_>) {
    for_each_size!(p.per_tile, tiles, p)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn tiles<const M: usize>(mut p: Product<'_, '_>) {
    let blocks = p.panel.len();
    let counts = residue_counts(blocks);
    let mut sums = Sums::<M>::new();
    for (tile, tokens) in p.tokens.chunks_exact(blocks).enumerate() {
        expect_sums::<M>(&p, tile * M);
        let mut acc = [_mm512_setzero_ps(); M];
        let mut pairs = p.panel.iter().zip(tokens);
        for count in counts {
            for (w, x) in pairs.by_ref().take(count) {
                ask_ahead(p.ahead);
                block(w, x, &mut acc);
            }
            sums.add(&mut acc);
        }
        // SAFETY: the promise of whoever made `p`; the number of vectors is `M`.
        unsafe { put_sums(&mut p, tile * M, &acc) };
    }
}

/// Four neighbouring activations in all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn quad(q: &[i8; SUB], k: usize) -> __m512i {
    let [a, b, c, d] = q.as_chunks::<4>().0[k];
    _mm512_set1_epi32(i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]))
}

/// Keeps the compiler from moving later products before this one: it would go through those of one vector after
/// the other, to need fewer registers, and the CPU would wait for each of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn in_order(mut x: __m512i) -> __m512i {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {} */", inout(zmm_reg) x, options(nomem, nostack, preserves_flags)) };
    x
}

/// Adds the products of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn block<const M: usize>(w: &PanelBlock, x: &TokenBlock, acc: &mut [__m512; M]) {
    // Vector by vector in the inner loop: a vector's next product has to wait for its last one.
    let mut dots = [_mm512_setzero_si512(); M];
    for (dot, offset) in dots.iter_mut().zip(x.offset) {
        *dot = _mm512_set1_epi32(offset);
    }
    for (k, codes) in w.codes.iter().enumerate() {
        let codes = load(codes);
        for (dot, q) in dots.iter_mut().zip(&x.q) {
            // Four products of a byte each per lane: at most 4 · 15 · 127, no saturation.
            *dot = in_order(_mm512_dpbusd_epi32(*dot, codes, quad(q, k)));
        }
    }
    let scale = load_f32(&w.scale);
    for (m, (acc, dot)) in acc.iter_mut().zip(dots).enumerate() {
        let step = _mm512_mul_ps(scale, _mm512_set1_ps(x.scale[m]));
        *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), step, *acc);
    }
}
