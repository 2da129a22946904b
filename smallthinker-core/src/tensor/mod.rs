//! Weight types: how many bytes a block takes, and conversion from and to `f32`.

mod dtype;

pub use dtype::DType;
