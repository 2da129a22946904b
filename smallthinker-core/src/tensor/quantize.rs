//! `f32` to the weight types that this library writes, bit for bit as the `gguf` Python package does.

use super::DType;
use crate::error::{Error, Result};

/// Appends `src`, converted to `dtype`, to `out`.
///
/// Writes F32, F16, BF16, Q8_0 and Q4_0. F16 values round to nearest (ties to even; beyond 65504 they become
/// infinite). An [`Error::InvalidArgument`] when `src` is not a whole number of blocks, when `dtype` is
/// another type, or when a value for a block type is not finite; then `out` is as it was.
pub fn quantize(dtype: DType, src: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let Some(bytes) = dtype.row_bytes(src.len()) else {
        return Err(Error::argument(
            "src",
            format!("{} elements for {dtype}", src.len()),
            format!("a multiple of {}", dtype.block_len()),
        ));
    };
    if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::Q8_0 | DType::Q4_0) {
        return Err(Error::argument("dtype", dtype, "F32, F16, BF16, Q8_0 or Q4_0"));
    }
    if let (true, Some(at)) = (dtype.is_quantized(), src.iter().position(|x| !x.is_finite())) {
        return Err(Error::argument("src", format!("element {at} is not finite"), "finite values"));
    }
    out.reserve(bytes);
    match dtype {
        DType::F16 => src.iter().for_each(|&x| out.extend(half::f16::from_f32(x).to_le_bytes())),
        DType::BF16 => src.iter().for_each(|&x| out.extend(half::bf16::from_f32(x).to_le_bytes())),
        DType::Q8_0 => src.as_chunks().0.iter().for_each(|block| q8_0(block, out)),
        DType::Q4_0 => src.as_chunks().0.iter().for_each(|block| q4_0(block, out)),
        _ => src.iter().for_each(|x| out.extend(x.to_le_bytes())),
    }
    Ok(())
}

fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn q8_0(block: &[f32; 32], out: &mut Vec<u8>) {
    let amax = block.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let d = amax / 127.0;
    let inverse = reciprocal(d);
    out.extend(half::f16::from_f32(d).to_le_bytes());
    // `round` takes halves away from zero, as the reference does.
    out.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
}

fn q4_0(block: &[f32; 32], out: &mut Vec<u8>) {
    // The first element of largest magnitude maps to -8, so its sign decides the sign of the scale.
    let extreme = block.iter().fold(0.0_f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    let d = extreme / -8.0;
    let inverse = reciprocal(d);
    // Product and sum round separately: a fused multiply-add would change codes at the halves.
    let code = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    out.extend(half::f16::from_f32(d).to_le_bytes());
    let (low, high) = block.split_at(16);
    out.extend(low.iter().zip(high).map(|(&a, &b)| code(a) | (code(b) << 4)));
}
