//! Brings the weights of a GGUF file into a smaller type, tensor by tensor.

use std::path::Path;

use super::{CHUNK_ELEMENTS, QUANTIZATION_VERSION, check_range, encode, file_type};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, GgufWriter, TensorInfo, TensorStream, Value};
use crate::model::weights::is_vector_or_router;
use crate::tensor::{DType, dequantize};

/// How to quantize.
pub struct QuantizeOptions<'p> {
    /// Type of the weights: Q8_0 or Q4_0. Norms and routers become F32 whatever it is.
    pub dtype: DType,
    /// Called with the bytes of tensor data written so far and the bytes to write; returns false to cancel.
    pub progress: Option<&'p mut (dyn FnMut(u64, u64) -> bool + 'p)>,
}

impl QuantizeOptions<'_> {
    /// Quantization to `dtype` without progress reports.
    pub fn new(dtype: DType) -> Self {
        QuantizeOptions { dtype, progress: None }
    }
}

/// What a quantization did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizeReport {
    /// Tensors written.
    pub tensors: usize,
    /// Of these, quantized.
    pub quantized: usize,
    /// Bytes of tensor data read.
    pub source_bytes: u64,
    /// Bytes of tensor data written.
    pub data_bytes: u64,
    /// Tensors kept in F16 because their rows are not whole blocks of the chosen type.
    pub fallbacks: Vec<String>,
}

/// Writes the model of the GGUF file `input` (F32, F16 or BF16; any shard of a sharded one) to the one file `out`, with its
/// weights in a smaller type. `out` appears only when it is complete, and may be `input`. A few megabytes are in memory
/// at a time.
///
/// Metadata are kept, except for those that state the type and the shards. A predictor of the LM head and tensors that
/// have the chosen type already are copied. The weights become those that [`convert`](super::convert) makes of the same numbers.
///
/// # Errors
/// [`Error::InvalidArgument`] for a type other than Q8_0 and Q4_0; [`Error::Unsupported`] for a file of another
/// architecture, or one with weights that have lost precision already; [`Error::Malformed`], naming the tensor, for weights
/// that the type cannot hold; [`Error::Io`]; [`Error::Cancelled`].
pub fn quantize_file(input: &Path, out: &Path, options: QuantizeOptions<'_>) -> Result<QuantizeReport> {
    let dtype = options.dtype;
    if !matches!(dtype, DType::Q8_0 | DType::Q4_0) {
        return Err(Error::argument("dtype", dtype, "Q8_0 and Q4_0"));
    }
    let gguf = Gguf::open(input)?;
    let architecture = gguf.require_str("general.architecture")?;
    if architecture != "smallthinker" {
        return Err(Error::unsupported(gguf.path(), "general.architecture", architecture, "smallthinker"));
    }
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        let value = match key {
            "general.file_type" => Value::U32(file_type(dtype)?),
            "general.quantization_version" => Value::U32(QUANTIZATION_VERSION),
            // The writer's own, and those of shards.
            "general.alignment" => continue,
            _ if key.starts_with("split.") => continue,
            _ => value.clone(),
        };
        writer.metadata(key, value)?;
    }
    for (key, value) in
        [("general.file_type", file_type(dtype)?), ("general.quantization_version", QUANTIZATION_VERSION)]
    {
        if gguf.get(key).is_none() {
            writer.metadata(key, Value::U32(value))?;
        }
    }
    let mut fallbacks = Vec::new();
    let mut planned = Vec::with_capacity(gguf.tensors().len());
    for tensor in gguf.tensors() {
        let wanted = wanted(&gguf, tensor, dtype)?;
        if wanted == DType::F16 {
            fallbacks.push(tensor.name.clone());
        }
        writer.tensor(&tensor.name, wanted, &tensor.dims)?;
        planned.push((tensor, wanted));
    }
    let data_bytes = writer.data_bytes();
    let mut job = Job {
        gguf: &gguf,
        stream: writer.create(out)?,
        progress: options.progress,
        done: 0,
        total: data_bytes,
    };
    for (tensor, dtype) in &planned {
        job.tensor(tensor, *dtype)?;
    }
    job.stream.finish()?;
    Ok(QuantizeReport {
        tensors: planned.len(),
        quantized: planned
            .iter()
            .filter(|(tensor, wanted)| *wanted == dtype && tensor.dtype != dtype)
            .count(),
        source_bytes: gguf.tensors().iter().map(|t| t.n_bytes).sum(),
        data_bytes,
        fallbacks,
    })
}

/// The type that a tensor gets.
fn wanted(gguf: &Gguf, tensor: &TensorInfo, dtype: DType) -> Result<DType> {
    if tensor.dtype == dtype || tensor.name == "lm_head_profiler.weight" {
        return Ok(tensor.dtype);
    }
    if !matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16) {
        let field = format!("type of {}", tensor.name);
        return Err(Error::unsupported(
            gguf.path(),
            field,
            tensor.dtype,
            "F32, F16 and BF16 (quantized once only)",
        ));
    }
    Ok(match tensor.dims.as_slice() {
        [_] => DType::F32,
        _ if is_vector_or_router(&tensor.name) => DType::F32,
        [cols, ..] if cols.is_multiple_of(dtype.block_len() as u64) => dtype,
        _ => DType::F16,
    })
}

/// The quantization in progress.
struct Job<'a, 'p> {
    gguf: &'a Gguf,
    stream: TensorStream,
    progress: Option<&'p mut (dyn FnMut(u64, u64) -> bool + 'p)>,
    done: u64,
    total: u64,
}

impl Job<'_, '_> {
    fn tensor(&mut self, tensor: &TensorInfo, dtype: DType) -> Result<()> {
        let misfit = || Error::Internal { message: format!("{} is too large", tensor.name) };
        let cols = usize::try_from(tensor.cols()).map_err(|_| misfit())?;
        let (from, whole) = (tensor.dtype, (CHUNK_ELEMENTS / tensor.cols().max(1)).max(1));
        let row = tensor.n_bytes / tensor.rows().max(1);
        let (mut raw, mut weights) = (Vec::new(), Vec::new());
        for first in (0..tensor.rows()).step_by(usize::try_from(whole).map_err(|_| misfit())?) {
            let rows = whole.min(tensor.rows() - first);
            raw.resize(usize::try_from(rows * row).map_err(|_| misfit())?, 0);
            let source = self.gguf.source();
            source.read_exact_at(tensor.shard, tensor.offset + first * row, &mut raw)?;
            if from == dtype {
                self.write(&raw)?;
                continue;
            }
            weights.resize(rows as usize * cols, 0.0);
            dequantize(from, &raw, &mut weights)?;
            check_range(&weights, dtype).map_err(|(found, allowed)| {
                Error::malformed(source.path(tensor.shard), tensor.name.as_str(), found, allowed)
            })?;
            for rows in encode(dtype, &weights, cols) {
                self.write(&rows?)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write(bytes)?;
        self.done += bytes.len() as u64;
        match self.progress.as_mut().is_none_or(|report| report(self.done, self.total)) {
            true => Ok(()),
            false => Err(Error::Cancelled),
        }
    }
}
