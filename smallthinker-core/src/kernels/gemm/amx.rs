//! The product of panels with the tile unit of x86-64 (AMX), for which stable Rust has no intrinsics.
//!
//! Per block of 32 columns the unit multiplies sixteen vectors with sixteen rows; the scaling and the sum over
//! blocks are AVX-512 code, which is what bounds this kernel. The two sides are three blocks apart, so that
//! neither waits for the other: in each step the unit starts block `i`, block `i - 2` is stored, and the
//! integers of block `i - 3` are scaled.
//!
//! Tile registers live from [`configure`] to [`release`] within one function, and nothing else uses them:
//! the compiler never does, and called code could not without a configuration of its own.

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx512::{self, AVX512, Sums, ask_ahead, expect_sums, for_each_size, load_f32, put_sums};
use super::panel::PanelBlock;
use super::tiles::TokenBlock;
use super::{Gemm, LANES, Product, residue_counts};
use crate::tensor::block::SUB;

/// Codes are signed here: the unit takes them so, and there is no offset left to add.
pub(in crate::kernels) const AMX: Gemm = Gemm {
    unpack_lanes: avx512::unpack_lanes::<8>,
    unpack_down: avx512::unpack_down::<8>,
    multiply,
    few: Some(&AVX512),
};

/// Whether the CPU has the instructions and the system lets this process use them.
pub(in crate::kernels) fn available() -> bool {
    // Leaf 7, EDX: bit 24 is AMX-TILE, bit 25 AMX-INT8.
    const AMX_BITS: u32 = 1 << 24 | 1 << 25;
    #[allow(unused_unsafe)] // the intrinsic became safe after our oldest supported compiler
    // SAFETY: every x86-64 CPU has the instruction.
    let (leaves, features) = unsafe { (__cpuid(0).eax, __cpuid_count(7, 0).edx) };
    leaves >= 7 && features & AMX_BITS == AMX_BITS && crate::platform::allow_amx()
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Registers 0 and 1 hold integer results, 2 the activations and 3 the weights.
#[inline]
fn configure(vectors: usize) {
    let mut config =
        Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let (vectors, quads) = (vectors as u8, (SUB / 4) as u8);
    for (register, (rows, bytes)) in
        [(vectors, 64), (vectors, 64), (vectors, SUB as u16), (quads, 64)].into_iter().enumerate()
    {
        (config.rows[register], config.row_bytes[register]) = (rows, bytes);
    }
    // SAFETY: reads 64 bytes, which `config` has; its values are valid for palette 1 and 1..=16 vectors.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &config, out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, readonly, preserves_flags));
    }
}

#[inline]
fn release() {
    // SAFETY: tile registers are used in this module only.
    unsafe {
        asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, nomem, preserves_flags));
    }
}

/// The integers of a block: one row per vector.
#[repr(C, align(64))]
struct Dots([[i32; LANES]; LANES]);

/// Starts the products of a block, into result register `R`.
///
/// # Safety
/// Between [`configure`] and [`release`], on a CPU with the instructions.
#[inline]
unsafe fn start<const R: usize>(w: &PanelBlock, x: &TokenBlock) {
    // SAFETY: the loads read up to sixteen rows of 32 bytes of `x.q` and eight of 64 bytes of `w.codes`.
    unsafe {
        if R == 0 {
            asm!(
                "tileloadd tmm2, [{x} + {row}*1]", "tileloadd tmm3, [{w} + {row}*2]",
                "tilezero tmm0", "tdpbssd tmm0, tmm2, tmm3",
                x = in(reg) &x.q, w = in(reg) &w.codes, row = in(reg) SUB,
                out("tmm0") _, out("tmm2") _, out("tmm3") _, options(nostack, readonly, preserves_flags)
            );
        } else {
            asm!(
                "tileloadd tmm2, [{x} + {row}*1]", "tileloadd tmm3, [{w} + {row}*2]",
                "tilezero tmm1", "tdpbssd tmm1, tmm2, tmm3",
                x = in(reg) &x.q, w = in(reg) &w.codes, row = in(reg) SUB,
                out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack, readonly, preserves_flags)
            );
        }
    }
}

/// Stores result register `R`.
///
/// # Safety
/// As for [`start`].
#[inline]
unsafe fn store<const R: usize>(out: &mut Dots) {
    // SAFETY: writes up to sixteen rows of 64 bytes, which `out` has.
    unsafe {
        if R == 0 {
            asm!("tilestored [{} + {}*1], tmm0", in(reg) out, in(reg) 64_usize, options(nostack, preserves_flags));
        } else {
            asm!("tilestored [{} + {}*1], tmm1", in(reg) out, in(reg) 64_usize, options(nostack, preserves_flags));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn multiply(p: Product<'_, '_>) {
    for_each_size!(p.per_tile, tiles, p)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn tiles<const M: usize>(mut p: Product<'_, '_>) {
    let blocks = p.panel.len();
    let counts = residue_counts(blocks);
    let (panel, tokens) = (p.panel, p.tokens);
    let pairs = || tokens.chunks_exact(blocks).flat_map(|tile| panel.iter().zip(tile));
    let (mut started, mut stored) = (pairs(), pairs());
    let mut dots = [const { Dots([[0; LANES]; LANES]) }; 2];
    let mut acc = [_mm512_setzero_ps(); M];
    let mut sums = Sums::<M>::new();
    let (mut tile, mut residue, mut left) = (0, 0, counts[0]);
    let mut lead = 0;
    configure(M);
    expect_sums::<M>(&p, 0);
    'all: loop {
        macro_rules! step {
            ($register:literal) => {
                // SAFETY: the tiles are configured and the CPU has the instructions.
                unsafe {
                    store::<$register>(&mut dots[$register]);
                    if let Some((w, x)) = started.next() {
                        start::<$register>(w, x);
                    }
                }
                if lead < 3 {
                    lead += 1;
                } else {
                    let Some((w, x)) = stored.next() else { break 'all };
                    ask_ahead(p.ahead);
                    add_scaled(w, x, &dots[1 - $register], &mut acc);
                    left -= 1;
                    while left == 0 {
                        if sums.add(&mut acc) {
                            // SAFETY: the promise of whoever made `p`; the number of vectors is `M`.
                            unsafe { put_sums(&mut p, tile * M, &acc) };
                            acc = [_mm512_setzero_ps(); M];
                            tile += 1;
                            expect_sums::<M>(&p, tile * M);
                        }
                        residue = (residue + 1) % 8;
                        left = counts[residue];
                    }
                }
            };
        }
        step!(0);
        step!(1);
    }
    release();
}

/// Adds the products of a block, given their integers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn add_scaled<const M: usize>(w: &PanelBlock, x: &TokenBlock, dots: &Dots, acc: &mut [__m512; M]) {
    let scale = load_f32(&w.scale);
    for (m, acc) in acc.iter_mut().enumerate() {
        // SAFETY: sixteen integers; the load needs no alignment.
        let dot = unsafe { _mm512_loadu_si512(dots.0[m].as_ptr().cast()) };
        let step = _mm512_mul_ps(scale, _mm512_set1_ps(x.scale[m]));
        *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), step, *acc);
    }
}
