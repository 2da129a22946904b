//! Runs SmallThinker Mixture-of-Experts language models on the CPU, straight from a GGUF file.

pub mod convert;
mod error;
pub mod gguf;
pub mod kernels;
pub mod tensor;
pub mod tokenizer;

pub use error::{Error, ErrorKind, Result};
