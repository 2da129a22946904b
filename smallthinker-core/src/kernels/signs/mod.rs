//! Products of rows of signs, a bit each, with one vector of 8-bit integers: the sketch of the LM head.
//!
//! The results are integers, so every set gives the same.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod scalar;
#[cfg(test)]
mod tests;

use super::{Kernels, misuse};
use crate::error::Result;

/// Signs of a word.
pub(crate) const WORD: usize = 64;
/// Words of a row at most: sums of so many products fit the narrowest accumulators.
pub(crate) const MAX_WORDS: usize = 64;

/// The arguments of a kernel: `out[i]` belongs to the words of `rows` from byte `i * stride` on, all of which exist.
pub(super) struct SignsJob<'a> {
    pub(super) rows: &'a [u8],
    pub(super) stride: usize,
    /// Never -128.
    pub(super) z: &'a [[i8; WORD]],
    /// The sum of all elements of `z`.
    pub(super) sum: i32,
    pub(super) out: &'a mut [i32],
}

/// Unsafe because it may use instructions that only some CPUs have.
pub(super) type SignsFn = unsafe fn(SignsJob<'_>);

impl Kernels {
    /// `out[i]` = the sum of `±z[j]`, plus where bit `j` of row `i` is set: bit `j % 8` of byte `i * stride + j / 8`. The last
    /// word of a row may reach into the next one, where `z` is zero; behind the last row there are as many bytes more.
    ///
    /// Errors: [`Error::Internal`](crate::Error::Internal) if a length does not fit.
    pub(crate) fn sign_products(
        &self,
        rows: &[u8],
        stride: usize,
        z: &[[i8; WORD]],
        out: &mut [i32],
    ) -> Result<()> {
        let last = out.len().saturating_sub(1).checked_mul(stride);
        let end = last.and_then(|last| last.checked_add(size_of_val(z) / 8));
        if z.is_empty() || z.len() > MAX_WORDS || end.is_none_or(|end| end > rows.len()) {
            let detail =
                format_args!("{} bytes, {} rows of {stride}, {} words", rows.len(), out.len(), z.len());
            return Err(misuse("sign_products", detail));
        }
        let sum = z.as_flattened().iter().map(|&z| i32::from(z)).sum();
        // SAFETY: the set exists, so the CPU has its instructions; lengths were checked above.
        unsafe { (self.signs)(SignsJob { rows, stride, z, sum, out }) };
        Ok(())
    }
}

impl<'a> SignsJob<'a> {
    /// The words of row `i`.
    #[inline]
    fn row(&self, i: usize) -> &'a [[u8; WORD / 8]] {
        let from = i * self.stride;
        self.rows.get(from..from + self.z.len() * (WORD / 8)).unwrap_or(&[]).as_chunks().0
    }
}
