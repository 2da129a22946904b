//! Compute kernels: products of weight rows, as they lie in the file, with activations, and the small vector
//! operations around them. One [`Kernels`] value is one implementation for one kind of CPU.
//!
//! Every set computes the same integers; float sums differ between sets in their order only. Within a set a
//! result depends on its row and its vector alone: not on the number of rows, tokens or threads.
// What only the sets of one kind of CPU need.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

mod acts;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod gemm;
pub(crate) mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod neurons;
mod scalar;
pub(crate) mod signs;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::ops::Range;

pub use acts::{ActBlock, ActGroup, ActRow, Acts};
pub(crate) use acts::{Forms, GROUP};
#[doc(hidden)] // for the engine and its benchmarks
pub use gemm::{ActTiles, GemmScratch, Layout, PanelRows, PanelSource, TileBatch};

use crate::error::{Error, Result};
use crate::tensor::DType;

/// Most tokens that a tile function multiplies with one pass over a weight row.
pub(crate) const TILE_TOKENS: usize = 4;

/// Rows that `matmul` gives to a tile function at least, as far as there are so many: some multiply several at once.
const LEAST_ROWS: usize = 6;

/// Weight bytes that `matmul` keeps hot while it goes through the tokens: half of a 32 KiB first-level cache.
const TILE_BYTES: usize = 16 * 1024;

/// Rows times up to [`TILE_TOKENS`] vectors. Whoever calls a tile function promises that `rows` is whole rows
/// of `row_bytes > 0`, that every vector of `acts` (at least one) covers a row, and that `out` has a place for
/// token `t` and row `r` at `t * stride + r`.
pub(crate) struct Tile<'a> {
    rows: &'a [u8],
    row_bytes: usize,
    acts: &'a [ActRow<'a>],
    out: &'a mut [f32],
    stride: usize,
}

impl Tile<'_> {
    #[inline]
    fn put(&mut self, row: usize, sums: &[f32]) {
        for (token, &sum) in sums.iter().enumerate() {
            if let Some(place) = self.out.get_mut(token * self.stride + row) {
                *place = sum;
            }
        }
    }
}

/// A tile function. Unsafe because it may use instructions that only some CPUs have; it is reached through
/// a [`Kernels`] value only, which exists only where they are available.
type TileFn = unsafe fn(Tile<'_>);

/// A set of kernels that this CPU and operating system can run.
pub struct Kernels {
    name: &'static str,
    tile: fn(DType) -> TileFn,
    lanes: lanes::LanesFn,
    neurons: neurons::Functions,
    signs: signs::SignsFn,
    prefetch: unsafe fn(&[u8]),
    quantize_acts: unsafe fn(&[f32], &mut [ActGroup]),
    dot_f16: unsafe fn(&[f32], &[u16]) -> f32,
    axpy_f16: unsafe fn(&mut [f32], f32, &[u16]),
    dot_f32: unsafe fn(&[f32], &[f32]) -> f32,
    axpy_f32: unsafe fn(&mut [f32], f32, &[f32]),
    add_scaled: unsafe fn(&mut [f32], f32, &[f32]),
    f32_to_f16: unsafe fn(&[f32], &mut [u16]),
    gemm: gemm::Gemm,
    attention: &'static attention::Functions,
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cold]
fn misuse(what: &str, detail: impl fmt::Display) -> Error {
    Error::Internal { message: format!("{what}: {detail}") }
}

fn same_len(what: &'static str, a: usize, b: usize) -> Result<()> {
    if a == b { Ok(()) } else { Err(misuse(what, format_args!("lengths {a} and {b} differ"))) }
}

impl Kernels {
    /// The best set for this machine.
    pub fn detect() -> &'static Kernels {
        Self::available().first().copied().unwrap_or(&scalar::KERNELS)
    }

    /// All sets that this CPU and operating system can run, best first; the last is always "scalar".
    ///
    /// Where there is AMX, asks the kernel for the permission to use its registers, which a process has from then on;
    /// signal stacks must then be large enough to hold them.
    pub fn available() -> Vec<&'static Kernels> {
        Self::listed(true)
    }

    /// As [`available`](Self::available); without `amx` nothing is asked for.
    fn listed(amx: bool) -> Vec<&'static Kernels> {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = amx;
        let mut sets: Vec<&'static Kernels> = Vec::with_capacity(5);
        // The macros look at the CPU's flags and at the register state that the operating system saves
        // (OSXSAVE and XCR0 on x86, hwcaps on Arm), so a set is listed only if its registers survive a
        // context switch.
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
            if avx2 && avx512 && has!("avx512vnni") {
                if amx && gemm::amx_available() {
                    sets.push(&avx512::AMX_KERNELS);
                }
                sets.push(&avx512::KERNELS);
            }
            if avx2 && has!("avxvnni") {
                sets.push(&avx2::VNNI_KERNELS);
            }
            if avx2 {
                sets.push(&avx2::KERNELS);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon")
            && std::arch::is_aarch64_feature_detected!("dotprod")
        {
            sets.push(&neon::KERNELS);
        }
        sets.push(&scalar::KERNELS);
        sets
    }

    /// The set with this name, if this machine can run it: "amx", "avx512vnni", "avxvnni", "avx2", "neon"
    /// or "scalar".
    pub fn by_name(name: &str) -> Option<&'static Kernels> {
        Self::listed(name == "amx").into_iter().find(|set| set.name == name)
    }

    /// Name of the set.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// `out[r]` = row `r` · `x`, for the `out.len()` consecutive rows of `cols` weights in `rows`.
    ///
    /// Errors: [`Error::Internal`] if a length does not fit, or if `dtype` is quantized and `x` is not.
    pub fn matvec(
        &self,
        dtype: DType,
        rows: &[u8],
        cols: usize,
        x: ActRow<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let row_bytes = check_rows("matvec", dtype, rows, out.len(), cols)?;
        check_row("matvec", dtype, cols, &x)?;
        if row_bytes == 0 || out.is_empty() {
            out.fill(0.0);
            return Ok(());
        }
        let stride = out.len();
        // SAFETY: the set exists, so the CPU has its instructions; lengths were checked above.
        unsafe { (self.tile)(dtype)(Tile { rows, row_bytes, acts: &[x], out, stride }) };
        Ok(())
    }

    /// `out[t][r]` = row `r` · vector `tokens.start + t` of `xs`, for the `n_rows` consecutive rows of
    /// `rows`. Every output has exactly the bits that [`matvec`](Self::matvec) gives.
    ///
    /// Errors: as `matvec`; also if `tokens` lies outside `xs` or `out.len()` is not tokens × rows.
    #[allow(clippy::too_many_arguments)]
    pub fn matmul(
        &self,
        dtype: DType,
        rows: &[u8],
        n_rows: usize,
        cols: usize,
        xs: &Acts,
        tokens: Range<usize>,
        out: &mut [f32],
    ) -> Result<()> {
        let row_bytes = check_rows("matmul", dtype, rows, n_rows, cols)?;
        if tokens.start > tokens.end || tokens.end > xs.tokens() {
            return Err(misuse("matmul", format_args!("tokens {tokens:?} of {}", xs.tokens())));
        }
        if n_rows.checked_mul(tokens.len()) != Some(out.len()) {
            let want =
                format_args!("{} outputs for {n_rows} rows × {} tokens", out.len(), tokens.len()).to_string();
            return Err(misuse("matmul", want));
        }
        if row_bytes == 0 || out.is_empty() {
            out.fill(0.0);
            return Ok(());
        }
        // All rows of `xs` have the same shape.
        check_row("matmul", dtype, cols, &xs.row(tokens.start))?;
        let tile = (self.tile)(dtype);
        let rows_per_tile = (TILE_BYTES / row_bytes).max(LEAST_ROWS);
        for (i, part) in rows.chunks(rows_per_tile * row_bytes).enumerate() {
            for first in tokens.clone().step_by(TILE_TOKENS) {
                let count = TILE_TOKENS.min(tokens.end - first);
                let mut acts = [ActRow::EMPTY; TILE_TOKENS];
                for (k, act) in acts.iter_mut().enumerate().take(count) {
                    *act = xs.row(first + k);
                }
                let at = (first - tokens.start) * n_rows + i * rows_per_tile;
                let (Some(acts), Some(out)) = (acts.get(..count), out.get_mut(at..)) else { continue };
                // SAFETY: the set exists, so the CPU has its instructions; lengths were checked above.
                unsafe { tile(Tile { rows: part, row_bytes, acts, out, stride: n_rows }) };
            }
        }
        Ok(())
    }

    /// Asks for bytes that will soon be read. Changes no result.
    #[inline]
    pub(crate) fn prefetch(&self, bytes: &[u8]) {
        // SAFETY: the set exists, so the CPU has its instructions.
        unsafe { (self.prefetch)(bytes) }
    }

    /// Quantizes a vector (a multiple of 32 elements) into `groups`, one per 256 elements, the last one
    /// padded with zeros. Every set gives the same result.
    pub fn quantize_acts(&self, x: &[f32], groups: &mut [ActGroup]) -> Result<()> {
        if !x.len().is_multiple_of(32) || groups.len() != x.len().div_ceil(acts::GROUP) {
            let detail = format_args!("{} values, {} groups", x.len(), groups.len()).to_string();
            return Err(misuse("quantize_acts", detail));
        }
        // SAFETY: the set exists, so the CPU has its instructions; lengths were checked above.
        unsafe { (self.quantize_acts)(x, groups) };
        Ok(())
    }

    /// Σ `q[i]` · `k[i]`, with `k` in IEEE half precision.
    pub fn dot_f16(&self, q: &[f32], k: &[u16]) -> Result<f32> {
        same_len("dot_f16", q.len(), k.len())?;
        // SAFETY: the set exists, so the CPU has its instructions; lengths are equal.
        Ok(unsafe { (self.dot_f16)(q, k) })
    }

    /// `acc[i] += w · v[i]`, with `v` in IEEE half precision.
    pub fn axpy_f16(&self, acc: &mut [f32], w: f32, v: &[u16]) -> Result<()> {
        same_len("axpy_f16", acc.len(), v.len())?;
        // SAFETY: the set exists, so the CPU has its instructions; lengths are equal.
        unsafe { (self.axpy_f16)(acc, w, v) };
        Ok(())
    }

    /// Σ `a[i]` · `b[i]`.
    pub fn dot_f32(&self, a: &[f32], b: &[f32]) -> Result<f32> {
        same_len("dot_f32", a.len(), b.len())?;
        // SAFETY: the set exists, so the CPU has its instructions; lengths are equal.
        Ok(unsafe { (self.dot_f32)(a, b) })
    }

    /// `acc[i] += w · v[i]`.
    pub fn axpy_f32(&self, acc: &mut [f32], w: f32, v: &[f32]) -> Result<()> {
        same_len("axpy_f32", acc.len(), v.len())?;
        // SAFETY: the set exists, so the CPU has its instructions; lengths are equal.
        unsafe { (self.axpy_f32)(acc, w, v) };
        Ok(())
    }

    /// `acc[i] += w · v[i]`, the product rounded before it is added: the same bits in every set.
    pub(crate) fn add_scaled(&self, acc: &mut [f32], w: f32, v: &[f32]) -> Result<()> {
        same_len("add_scaled", acc.len(), v.len())?;
        // SAFETY: the set exists, so the CPU has its instructions; lengths are equal.
        unsafe { (self.add_scaled)(acc, w, v) };
        Ok(())
    }

    /// Rounds to IEEE half precision, to nearest, ties to even.
    pub fn f32_to_f16(&self, src: &[f32], out: &mut [u16]) -> Result<()> {
        same_len("f32_to_f16", src.len(), out.len())?;
        // SAFETY: the set exists, so the CPU has its instructions; lengths are equal.
        unsafe { (self.f32_to_f16)(src, out) };
        Ok(())
    }

    /// `out[i] = x[i] / sqrt(mean(x²) + eps) · weight[i]`. The same bits in every set.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> Result<()> {
        same_len("rms_norm", x.len(), weight.len())?;
        same_len("rms_norm", x.len(), out.len())?;
        scalar::rms_norm(x, weight, eps, out);
        Ok(())
    }

    /// `gate[i] = max(gate[i], 0) · up[i]`. Where gate is not above zero the result is zero, whatever up is (it need
    /// not have been computed); a gate that is NaN stays NaN. The same bits in every set.
    pub fn relu_mul(&self, gate: &mut [f32], up: &[f32]) -> Result<()> {
        same_len("relu_mul", gate.len(), up.len())?;
        scalar::relu_mul(gate, up);
        Ok(())
    }
}

/// Bytes of a row, once `rows` is known to be `n_rows` rows of `cols` weights.
fn check_rows(what: &'static str, dtype: DType, rows: &[u8], n_rows: usize, cols: usize) -> Result<usize> {
    let row_bytes = dtype.row_bytes(cols);
    match row_bytes {
        Some(bytes) if bytes.checked_mul(n_rows) == Some(rows.len()) => Ok(bytes),
        _ => Err(misuse(
            what,
            format_args!("{} bytes for {n_rows} rows of {cols} {dtype} weights", rows.len()),
        )),
    }
}

/// That `x` has `cols` elements, in the form that `dtype` needs.
fn check_row(what: &'static str, dtype: DType, cols: usize, x: &ActRow<'_>) -> Result<()> {
    if x.cols != cols {
        return Err(misuse(what, format_args!("activations of {} elements for {cols} columns", x.cols)));
    }
    if !dtype.is_quantized() && x.values.len() != cols {
        return Err(misuse(what, format_args!("{dtype} weights need activations in f32")));
    }
    if dtype.is_quantized() && x.groups.len() != cols.div_ceil(acts::GROUP) {
        return Err(misuse(what, format_args!("{dtype} weights need quantized activations")));
    }
    Ok(())
}
