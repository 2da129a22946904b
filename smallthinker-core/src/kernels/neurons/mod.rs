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
use crate::tensor::packed::{BLOCK_Q4_0, BLOCK_Q8_0, BLOCK_SCALES, LINE, TILE, neuron_block_bytes};

/// 32 quantized neurons without those that are zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NeuronBlock {
    /// What one integer step is worth; NaN if a neuron of the block was not finite.
    pub(super) scale: f32,
    /// The sum of the values.
    pub(super) sum: i32,
    pub(super) count: u8,
    /// The first `count` are the neurons that are not zero, ascending; the last of them follows, to whole fours at least.
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
        // Kernels take four at a time. What they load beside the last one is the last one again.
        let last = n.checked_sub(1).map_or(0, |last| packed.index[last]);
        packed.index.iter_mut().skip(n).take(3).for_each(|behind| *behind = last);
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
    fn quads(&self) -> impl ExactSizeIterator<Item = (&[u8; 4], &[i8; 4])> {
        let quads = usize::from(self.count).div_ceil(4);
        self.index.as_chunks::<4>().0.iter().zip(self.q.as_chunks::<4>().0).take(quads)
    }
}

/// Lines of a neuron's codes, in a type whose blocks have `block_bytes`.
const fn lines(block_bytes: usize) -> usize {
    (block_bytes - BLOCK_SCALES) / (32 * LINE)
}

/// A tile of a down projection: 128 outputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DownTile<'a> {
    /// Its weights in [`Layout::Neurons`](crate::tensor::packed::Layout::Neurons).
    pub(crate) weights: &'a [u8],
    /// As many blocks as the tile has.
    pub(crate) neurons: &'a [NeuronBlock],
    /// Which codes to request from memory ahead of their use: [`Wanted`] of all blocks, or none.
    pub(crate) wanted: &'a [Wanted],
    /// Whether the first of them have been requested, as what comes next.
    pub(crate) begun: bool,
}

/// Where the codes of four neurons begin that are multiplied together, in bytes from the beginning of a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted([u32; 4]);

impl Wanted {
    /// Those of the neurons of `block` that are not zero. It is block `number` of a tile of weights of type `dtype`.
    pub(crate) fn of(dtype: DType, number: usize, block: &NeuronBlock) -> impl Iterator<Item = Wanted> {
        let bytes = neuron_block_bytes(dtype).unwrap_or(BLOCK_Q4_0);
        let (codes, step) = (number * bytes + BLOCK_SCALES, lines(bytes) * LINE);
        // A place too far away for 32 bits only makes for a useless request.
        block.quads().map(move |(index, _)| Wanted(index.map(|i| (codes + step * usize::from(i)) as u32)))
    }
}

/// The arguments of a kernel: the blocks of one tile, each of the type's `B` bytes, and as many blocks of neurons.
pub(super) struct NeuronsJob<'a, const B: usize> {
    tile: &'a [[u8; B]],
    neurons: &'a [NeuronBlock],
    requests: Requests<'a>,
    out: &'a mut [f32; TILE],
}

/// Cache lines of codes that are requested ahead of the arithmetic. For each that is used another one is requested, so that as
/// many are on their way at any time.
const AHEAD: usize = 128;
/// Blocks whose scales are requested ahead.
const SCALES_AHEAD: usize = 6;

/// What a kernel requests from memory: the codes and scales of a tile, and the beginning of the next.
pub(super) struct Requests<'a> {
    tile: DownTile<'a>,
    next: Option<DownTile<'a>>,
    /// The codes that are still to be requested of the tile, or of the next one.
    left: &'a [Wanted],
    /// Where that tile begins.
    base: *const u8,
    /// How many fours are missing ahead.
    late: usize,
}

impl<'a> Requests<'a> {
    fn new<const B: usize>(tile: DownTile<'a>, next: Option<DownTile<'a>>) -> Self {
        let ahead = (AHEAD / 4 / lines(B)).min(tile.wanted.len());
        let (begun, late) = if tile.begun { (ahead, 0) } else { (0, ahead) };
        let left = tile.wanted.get(begun..).unwrap_or(&[]);
        let next = next.filter(|next| !next.weights.is_empty());
        Requests { tile, next, left, base: tile.weights.as_ptr(), late }
    }

    /// How many fours to request before a block with `quads` fours is computed.
    #[inline]
    fn due(&mut self, quads: usize) -> usize {
        quads + std::mem::take(&mut self.late)
    }

    /// Where the codes of the next four neurons begin.
    #[inline]
    fn codes(&mut self) -> Option<[*const u8; 4]> {
        if self.left.is_empty() && self.base == self.tile.weights.as_ptr() {
            let next = self.next.as_ref()?;
            (self.left, self.base) = (next.wanted, next.weights.as_ptr());
        }
        let (Wanted(four), rest) = self.left.split_first()?;
        self.left = rest;
        Some(four.map(|at| self.base.wrapping_add(at as usize)))
    }

    /// Where the scales begin that are to be requested before block `b` is computed.
    #[inline]
    fn scales<const B: usize>(&self, b: usize) -> Option<*const [u8; BLOCK_SCALES]> {
        let later = b + SCALES_AHEAD;
        let (tile, block) = match later.checked_sub(self.tile.neurons.len()) {
            None => (&self.tile, later),
            Some(block) => (self.next.as_ref()?, block),
        };
        tile.neurons.get(block).filter(|neurons| !neurons.is_zero())?;
        Some(tile.weights.as_ptr().wrapping_add(block * B).cast())
    }
}

/// Unsafe because it may use instructions that only some CPUs have.
type NeuronsFn<const B: usize> = unsafe fn(NeuronsJob<'_, B>);

/// The kernels of one set.
pub(super) struct Functions {
    pub(super) q4_0: NeuronsFn<BLOCK_Q4_0>,
    pub(super) q8_0: NeuronsFn<BLOCK_Q8_0>,
}

impl Kernels {
    /// `out` = the products of one tile's outputs with the neurons. `next` is likely to be wanted after it: its beginning is
    /// requested.
    ///
    /// Errors: [`Error::Internal`](crate::Error::Internal) if the tile has not one block per block of neurons, or if
    /// the type does not lie by neuron.
    pub(crate) fn down_tile(
        &self,
        dtype: DType,
        tile: &DownTile<'_>,
        next: Option<&DownTile<'_>>,
        out: &mut [f32; TILE],
    ) -> Result<()> {
        match dtype {
            DType::Q4_0 => run(self.neurons.q4_0, tile, next, out),
            DType::Q8_0 => run(self.neurons.q8_0, tile, next, out),
            _ => Err(misuse("down_tile", format_args!("{dtype} weights"))),
        }
    }
}

/// `kernel` must be of a set that exists.
fn run<const B: usize>(
    kernel: NeuronsFn<B>,
    tile: &DownTile<'_>,
    next: Option<&DownTile<'_>>,
    out: &mut [f32; TILE],
) -> Result<()> {
    let (requests, neurons) = (Requests::new::<B>(*tile, next.copied()), tile.neurons);
    let (tile, rest) = tile.weights.as_chunks::<B>();
    if !rest.is_empty() || tile.len() != neurons.len() {
        let detail = format_args!("{} blocks of weights, {} of neurons", tile.len(), neurons.len());
        return Err(misuse("down_tile", detail));
    }
    // SAFETY: the set exists, so the CPU has its instructions; lengths were checked above.
    unsafe { kernel(NeuronsJob { tile, neurons, requests, out }) };
    Ok(())
}
