//! Weight types: how many bytes a block takes, and conversion from and to `f32`.

pub(crate) mod block;
mod dequantize;
mod dtype;
pub(crate) mod matrix;
pub(crate) mod packed;
mod quantize;
pub(crate) mod scales;
mod transpose;

pub use dequantize::dequantize;
pub use dtype::DType;
pub use quantize::quantize;
