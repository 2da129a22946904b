//! Converts a SmallThinker checkpoint in the Hugging Face layout (`config.json`, safetensors,
//! `tokenizer.json`) to a GGUF file that this library and mainline `llama.cpp` load.
//!
//! `config` (what the model is) → `checkpoint` (where the weights lie) → `plan` (which tensor becomes which)
//! → `vocab` (tokenizer metadata) and `head_sketch` → this file (reads, quantizes, writes, a few megabytes at a time).

mod checkpoint;
mod config;
mod head_sketch;
mod json;
mod plan;
mod requantize;
#[cfg(test)]
mod tests;
mod vocab;

use std::path::Path;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::gguf::{GgufWriter, TensorStream, Value};
use crate::tensor::{DType, quantize};
use checkpoint::{Checkpoint, Stored};
use config::Config;
use plan::{Plan, Planned};
pub use requantize::{QuantizeOptions, QuantizeReport, quantize_file};

/// Elements converted at a time: 4 MiB of `f32`, so memory does not grow with the model.
const CHUNK_ELEMENTS: u64 = 1 << 20;
/// Version of the block layouts, which `general.quantization_version` states.
const QUANTIZATION_VERSION: u32 = 2;

/// How to convert.
pub struct ConvertOptions<'p> {
    /// Type of the weights: F32, F16, BF16, Q8_0 or Q4_0. Norms and routers are F32 whatever it is.
    pub dtype: DType,
    /// Called with the bytes of tensor data written so far and the bytes to write; returns false to cancel.
    pub progress: Option<&'p mut (dyn FnMut(u64, u64) -> bool + 'p)>,
}

impl ConvertOptions<'_> {
    /// Conversion to `dtype` without progress reports.
    pub fn new(dtype: DType) -> Self {
        ConvertOptions { dtype, progress: None }
    }
}

/// What a conversion did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertReport {
    /// Tensors written.
    pub tensors: usize,
    /// Weights written.
    pub parameters: u64,
    /// Bytes of tensor data written.
    pub data_bytes: u64,
    /// Tensors kept in F16 because their rows are not whole blocks of the chosen type.
    pub fallbacks: Vec<String>,
    /// Tensors of the checkpoint left out because they repeat others: a tied head, RoPE frequencies.
    pub skipped: Vec<String>,
}

/// Converts the checkpoint in the folder `hf_dir` to the file `out`, which appears only when it is complete.
///
/// # Errors
/// [`Error::Malformed`] or [`Error::Unsupported`], naming file and field, for a checkpoint that is damaged or
/// that a GGUF file cannot express; [`Error::InvalidArgument`] for a type that cannot be written;
/// [`Error::Io`]; [`Error::Cancelled`].
pub fn convert(hf_dir: &Path, out: &Path, options: ConvertOptions<'_>) -> Result<ConvertReport> {
    let file_type = file_type(options.dtype)?;
    let config = Config::read(&hf_dir.join("config.json"))?;
    let checkpoint = Checkpoint::open(hf_dir)?;
    let Plan { tensors, fallbacks, skipped } = plan::plan(&checkpoint, &config, options.dtype)?;
    // After the plan, which has checked the vocabulary's size against the embedding.
    let tokenizer = vocab::metadata(hf_dir, &config)?;
    let head_sketch = head_sketch::metadata(hf_dir, &config)?;

    let mut writer = GgufWriter::new();
    for (key, value) in model_metadata(hf_dir, &config, file_type) {
        writer.metadata(key, value)?;
    }
    for (key, value) in tokenizer.into_iter().chain(head_sketch) {
        writer.metadata(key, value)?;
    }
    for t in &tensors {
        writer.tensor(&t.name, t.dtype, &t.dims)?;
    }
    let data_bytes = writer.data_bytes();
    let mut job = Job {
        checkpoint: &checkpoint,
        stream: writer.create(out)?,
        progress: options.progress,
        done: 0,
        total: data_bytes,
        weights: Vec::new(),
        bytes: Vec::new(),
    };
    for t in &tensors {
        job.tensor(t)?;
    }
    job.stream.finish()?;
    let parameters = tensors.iter().map(|t| t.dims.iter().product::<u64>()).sum();
    Ok(ConvertReport { tensors: tensors.len(), parameters, data_bytes, fallbacks, skipped })
}

/// The conversion in progress.
struct Job<'a, 'p> {
    checkpoint: &'a Checkpoint,
    stream: TensorStream,
    progress: Option<&'p mut (dyn FnMut(u64, u64) -> bool + 'p)>,
    done: u64,
    total: u64,
    /// Scratch: weights of the current chunk.
    weights: Vec<f32>,
    /// Scratch: their bytes in the checkpoint.
    bytes: Vec<u8>,
}

impl Job<'_, '_> {
    fn tensor(&mut self, t: &Planned) -> Result<()> {
        let cols = t.dims.first().copied().unwrap_or(1);
        for part in &t.parts {
            let elements: u64 = part.shape.iter().product();
            let step = (CHUNK_ELEMENTS / cols).max(1) * cols; // whole rows
            let mut start = 0;
            while start < elements {
                let n = step.min(elements - start);
                self.chunk(t, part, start, n as usize, cols as usize)?;
                start += n;
            }
        }
        Ok(())
    }

    fn chunk(&mut self, t: &Planned, part: &Stored, start: u64, n: usize, cols: usize) -> Result<()> {
        self.weights.resize(n, 0.0);
        self.checkpoint.read_f32(part, start, &mut self.weights, &mut self.bytes)?;
        check_range(&self.weights, t.dtype).map_err(|(found, allowed)| {
            Error::malformed(self.checkpoint.path_of(part), t.name.as_str(), found, allowed)
        })?;
        for rows in encode(t.dtype, &self.weights, cols) {
            let rows = rows?;
            self.stream.write(&rows)?;
            self.done += rows.len() as u64;
        }
        match self.progress.as_mut().is_none_or(|report| report(self.done, self.total)) {
            true => Ok(()),
            false => Err(Error::Cancelled),
        }
    }
}

/// Whole rows of `cols` weights in a type, one part after the other.
fn encode(dtype: DType, weights: &[f32], cols: usize) -> Vec<Result<Vec<u8>>> {
    // Rows are independent, so the result does not depend on how they are shared out.
    let rows_each = (weights.len() / cols).div_ceil(rayon::current_num_threads()).max(1);
    let part = |rows: &[f32]| {
        let mut out = Vec::new();
        quantize(dtype, rows, &mut out).map(|()| out)
    };
    weights.par_chunks(rows_each * cols).map(part).collect()
}

/// Refuses weights that `dtype` cannot hold: what was found and what is allowed.
fn check_range(weights: &[f32], dtype: DType) -> Result<(), (String, String)> {
    let largest = match dtype {
        DType::F32 => f32::MAX,
        DType::BF16 => half::bf16::MAX.to_f32(),
        // The others hold F16 numbers: the weights, or the scale of a block.
        _ => half::f16::MAX.to_f32(),
    };
    match weights.iter().find(|w| w.is_nan() || w.abs() > largest) {
        None => Ok(()),
        Some(w) => Err((format!("weight {w}"), format!("finite weights up to {largest:e} for type {dtype}"))),
    }
}

/// Number of a file of mostly `dtype` in `general.file_type`.
fn file_type(dtype: DType) -> Result<u32> {
    match dtype {
        DType::F32 => Ok(0),
        DType::F16 => Ok(1),
        DType::Q4_0 => Ok(2),
        DType::Q8_0 => Ok(7),
        DType::BF16 => Ok(32),
        other => Err(Error::argument("dtype", other, "F32, F16, BF16, Q8_0 and Q4_0")),
    }
}

/// The `general.*` and `smallthinker.*` metadata.
fn model_metadata(dir: &Path, config: &Config, file_type: u32) -> Vec<(&'static str, Value)> {
    let folder = || dir.file_name().map(|n| n.to_string_lossy().into_owned());
    let name = config.name.clone().or_else(folder).unwrap_or_else(|| "smallthinker".into());
    let gating = if config.softmax_router { 1 } else { 2 };
    let mut out = vec![
        ("general.architecture", Value::String("smallthinker".into())),
        ("general.type", Value::String("model".into())),
        ("general.name", Value::String(name)),
        ("general.file_type", Value::U32(file_type)),
        ("general.quantization_version", Value::U32(QUANTIZATION_VERSION)),
        ("smallthinker.block_count", Value::U32(config.layers)),
        ("smallthinker.context_length", Value::U32(config.context)),
        ("smallthinker.embedding_length", Value::U32(config.hidden)),
        ("smallthinker.feed_forward_length", Value::U32(config.expert_ffn)),
        ("smallthinker.expert_feed_forward_length", Value::U32(config.expert_ffn)),
        ("smallthinker.attention.head_count", Value::U32(config.heads)),
        ("smallthinker.attention.head_count_kv", Value::U32(config.kv_heads)),
        ("smallthinker.attention.key_length", Value::U32(config.head_dim)),
        ("smallthinker.attention.value_length", Value::U32(config.head_dim)),
        ("smallthinker.attention.layer_norm_rms_epsilon", Value::F32(config.rms_eps)),
        ("smallthinker.rope.freq_base", Value::F32(config.rope_theta)),
        ("smallthinker.rope.dimension_count", Value::U32(config.head_dim)),
        ("smallthinker.expert_count", Value::U32(config.experts)),
        ("smallthinker.expert_used_count", Value::U32(config.active_experts)),
        // Always written: readers disagree about what its absence means.
        ("smallthinker.expert_gating_func", Value::U32(gating)),
        ("smallthinker.vocab_size", Value::U32(config.vocab)),
    ];
    out.extend(config.window.map(|w| ("smallthinker.attention.sliding_window", Value::U32(w))));
    out
}
