//! Weights to `f32`, exactly as the reference dequantization of `ggml` rounds them.

use super::DType;
use super::block::{self, Block, SUB, cast};
use crate::error::{Error, Result};

/// Converts whole blocks of `dtype` to `f32`.
///
/// `out.len()` must be a whole number of blocks and `bytes` must hold exactly those blocks; anything else is
/// an [`Error::InvalidArgument`] and leaves `out` as it was.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    if dtype.row_bytes(out.len()) != Some(bytes.len()) {
        return Err(Error::argument(
            "bytes",
            format!("{} bytes for {} elements of {dtype}", bytes.len(), out.len()),
            format!("{} bytes per {} elements", dtype.block_bytes(), dtype.block_len()),
        ));
    }
    match dtype {
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F16 => each(bytes, out, block::f16),
        DType::BF16 => each(bytes, out, |b| half::bf16::from_le_bytes(b).to_f32()),
        DType::Q4_0 => blocks::<block::BlockQ4_0>(bytes, out),
        DType::Q4_1 => blocks::<block::BlockQ4_1>(bytes, out),
        DType::Q5_0 => blocks::<block::BlockQ5_0>(bytes, out),
        DType::Q5_1 => blocks::<block::BlockQ5_1>(bytes, out),
        DType::Q8_0 => blocks::<block::BlockQ8_0>(bytes, out),
        DType::Q4_K => blocks::<block::BlockQ4K>(bytes, out),
        DType::Q5_K => blocks::<block::BlockQ5K>(bytes, out),
        DType::Q6_K => blocks::<block::BlockQ6K>(bytes, out),
        DType::I8 => each(bytes, out, block::integer),
    }
    Ok(())
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = convert(*raw);
    }
}

fn blocks<B: Block>(bytes: &[u8], out: &mut [f32]) {
    for (block, values) in cast::<B>(bytes).0.iter().zip(out.chunks_exact_mut(B::DTYPE.block_len())) {
        for (i, part) in values.chunks_exact_mut(SUB).enumerate() {
            let sub = block.sub(i);
            for (l, (value, q)) in part.iter_mut().zip(sub.q).enumerate() {
                *value = sub.scale[l / 16 % 2] * f32::from(q) - sub.min;
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
