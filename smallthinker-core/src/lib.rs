//! Runs SmallThinker Mixture-of-Experts language models on the CPU, straight from a GGUF file.
//!
//! The way of the data: file → [`gguf`] → [`Model`] (hyperparameters, resident weights, expert index) →
//! forward pass (router → expert requests → attention → experts → head) → logits → [`sample`] →
//! [`Session`] → text. A model is immutable and shared; a session is one conversation. Beside that way:
//! [`mod@bench`], [`fn@perplexity`], [`compare_heads`], [`convert`], [`pack`], and [`routing`], which records expert choices
//! and replays them against cache policies.
//!
//! ```no_run
//! use smallthinker_core::{GenerateOptions, Model};
//!
//! let model = Model::open("model.gguf")?;
//! let mut session = model.session()?;
//! session.append("Once upon a time")?;
//! let done = session.generate(GenerateOptions::max_tokens(64))?.complete()?;
//! println!("{} ({:.1} tokens/s)", done.text, done.stats.decode_tokens_per_second());
//! # Ok::<(), smallthinker_core::Error>(())
//! ```

mod error;

mod arena;
mod budget;
mod cancel;
mod hash;
pub mod platform;
mod pool;
mod tiles;

pub mod gguf;
pub mod tensor;

pub mod kernels;
pub mod tokenizer;

mod experts;
mod forward;
mod model;

pub mod chat;
pub mod sample;
mod session;

pub mod bench;
pub mod convert;
mod heads;
pub mod pack;
mod perplexity;
pub mod routing;

// Tests of the whole engine over storage that fails.
#[cfg(test)]
extern crate self as smallthinker_core;
#[cfg(test)]
mod faults;
#[cfg(test)]
#[allow(clippy::field_reassign_with_default)] // elsewhere there is no other way
#[path = "../tests/common/mod.rs"]
mod test_models;

pub use cancel::CancelFlag;
pub use chat::Message;
pub use error::{Error, ErrorKind, Result};
pub use experts::{CachePolicy, ExpertStats, LookAheadStats};
pub use forward::clock::{Stage, StageTimes};
pub use forward::kv_cache::KvType;
pub use heads::{HeadComparison, HeadOptions, HeadQuality, compare_heads};
pub use model::{
    ExpertKernel, Gating, HeadPredictor, Hparams, LayerAttention, LmHead, Model, ModelOptions, ModelStats,
    Plan, Progress, parse_bytes,
};
pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
pub use sample::{SamplingParams, TokenLogprobs};
pub use session::{
    Completion, FinishReason, GenerateOptions, Generation, GenerationStats, Generator, Piece, Session,
};
