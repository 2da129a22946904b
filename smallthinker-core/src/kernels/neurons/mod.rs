//! The down projection after a ReLU, from weights in [`Layout::Neurons`](crate::tensor::packed::Layout::Neurons):
//! neurons that are zero are skipped, and their weights never read.
//!
//! Zeros add nothing to the integer of a block, so the result is that of the dense product, bit for bit, in every
//! set: eight sums, one per block number modulo 8, each of its blocks in ascending order with one fused
//! multiply-add per block, added at the end in one fixed tree.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(super) mod avxvnni;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod scalar;
#[cfg(test)]
mod tests;

use super::acts::ActBlock;
use super::{Kernels, misuse};
use crate::error::Result;
use crate::tensor::DType;
use crate::tensor::packed::{BLOCK_Q4_0, BLOCK_Q8_0, BLOCK_SCALES, LINE, TILE};

/// 32 quantized neurons without those that are zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NeuronBlock {
    /// What one integer step is worth; NaN if a neuron of the block was not finite.
    pub(super) scale: f32,
    /// The sum of the values.
    pub(super) sum: i32,
    pub(super) count: u8,
    /// The first `count` are the neurons that are not zero, ascending; the rest is 0.
    pub(super) index: [u8; 32],
    /// Their values; the rest is 0.
    pub(super) q: [i8; 32],
}

impl NeuronBlock {
    /// All neurons are zero.
    pub(crate) const ZERO: NeuronBlock =
        NeuronBlock { scale: 0.0, sum: 0, count: 0, index: [0; 32], q: [0; 32] };

    pub(crate) fn new(block: &ActBlock<'_>) -> NeuronBlock {
        let mut packed = NeuronBlock {
            scale: block.scale,
            sum: i32::from(block.sums[0]) + i32::from(block.sums[1]),
            ..NeuronBlock::ZERO
        };
        let mut n = 0;
        for (i, &q) in block.q.iter().enumerate() {
            // Written in any case and kept if wanted: branches could not be foreseen.
            (packed.index[n], packed.q[n]) = (i as u8, q);
            n += usize::from(q != 0);
        }
        if let Some(behind) = packed.index.get_mut(n) {
            *behind = 0;
        }
        packed.count = n as u8;
        packed
    }

    /// Neurons that are not zero.
    pub(crate) fn active(&self) -> usize {
        usize::from(self.count)
    }

    /// Weight bytes that the block's products with one tile touch.
    pub(crate) fn bytes(&self, dtype: DType) -> usize {
        let codes = if dtype == DType::Q8_0 { lines(BLOCK_Q8_0) } else { lines(BLOCK_Q4_0) } * LINE;
        if self.is_zero() { 0 } else { BLOCK_SCALES + self.active() * codes }
    }

    /// Codes count from 0 while weights count from minus the zero point of their type: what that adds to a block's
    /// integer.
    #[inline]
    fn offset(&self, block_bytes: usize) -> i32 {
        let zero_point = if block_bytes == BLOCK_Q8_0 { 128 } else { 8 };
        -zero_point * self.sum
    }

    /// Whether the block adds nothing, whatever its weights, as long as their scales are finite numbers.
    fn is_zero(&self) -> bool {
        self.count == 0 && !self.scale.is_nan()
    }

    /// Four neurons at a time, with their values as the lanes of a dot product take them.
    #[inline]
    fn quads(&self) -> impl Iterator<Item = (&[u8; 4], &[i8; 4])> {
        let quads = usize::from(self.count).div_ceil(4);
        self.index.as_chunks::<4>().0.iter().zip(self.q.as_chunks::<4>().0).take(quads)
    }
}

/// Lines of a neuron's codes, in a type whose blocks have `block_bytes`.
const fn lines(block_bytes: usize) -> usize {
    (block_bytes - BLOCK_SCALES) / (32 * LINE)
}

/// The arguments of a kernel: the blocks of one tile, each of the type's `B` bytes, and as many blocks of neurons.
pub(super) struct NeuronsJob<'a, const B: usize> {
    pub(super) tile: &'a [[u8; B]],
    pub(super) neurons: &'a [NeuronBlock],
    pub(super) out: &'a mut [f32; TILE],
}

/// Unsafe because it may use instructions that only some CPUs have.
type NeuronsFn<const B: usize> = unsafe fn(NeuronsJob<'_, B>);

/// The kernels of one set.
pub(super) struct Functions {
    pub(super) q4_0: NeuronsFn<BLOCK_Q4_0>,
    pub(super) q8_0: NeuronsFn<BLOCK_Q8_0>,
}

impl Kernels {
    /// `out` = the products of one tile's 128 outputs with the neurons. The weights behind the tile are likely to be
    /// wanted next.
    ///
    /// Errors: [`Error::Internal`](crate::Error::Internal) if the tile has not one block per block of neurons, or if
    /// the type does not lie by neuron.
    pub(crate) fn down_tile(
        &self,
        dtype: DType,
        tile: &[u8],
        neurons: &[NeuronBlock],
        out: &mut [f32; TILE],
    ) -> Result<()> {
        match dtype {
            DType::Q4_0 => run(self.neurons.q4_0, tile, neurons, out),
            DType::Q8_0 => run(self.neurons.q8_0, tile, neurons, out),
            _ => Err(misuse("down_tile", format_args!("{dtype} weights"))),
        }
    }
}

/// `kernel` must be of a set that exists.
fn run<const B: usize>(
    kernel: NeuronsFn<B>,
    tile: &[u8],
    neurons: &[NeuronBlock],
    out: &mut [f32; TILE],
) -> Result<()> {
    let (tile, rest) = tile.as_chunks::<B>();
    if !rest.is_empty() || tile.len() != neurons.len() {
        let detail = format_args!("{} blocks of weights, {} of neurons", tile.len(), neurons.len());
        return Err(misuse("down_tile", detail));
    }
    // SAFETY: the set exists, so the CPU has its instructions; lengths were checked above.
    unsafe { kernel(NeuronsJob { tile, neurons, out }) };
    Ok(())
}
