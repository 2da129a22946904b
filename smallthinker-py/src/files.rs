//! Functions on files: `inspect`, `plan`, `convert`, `quantize`, `pack`.

use std::path::PathBuf;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use smallthinker_core::convert::{ConvertOptions, QuantizeOptions};
use smallthinker_core::gguf::{Array, Gguf, TensorInfo, Value};
use smallthinker_core::pack::PackOptions;
use smallthinker_core::tensor::DType;
use smallthinker_core::{CancelFlag, Gating, Hparams, Model, ModelOptions, Result};

use crate::enter::{self, Progress, Stop};
use crate::{args, dicts, errors};

/// What a GGUF file holds: metadata, hyperparameters (None unless it is a SmallThinker model) and tensors.
#[pyfunction]
pub(crate) fn inspect(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let (gguf, hparams) = enter::detached(py, || {
        let gguf = Gguf::open(&path)?;
        let hparams = match gguf.get_str("general.architecture")? {
            Some("smallthinker") => {
                let vocab = gguf.require_str_array("tokenizer.ggml.tokens")?.len();
                Some(Hparams::from_gguf(&gguf, vocab, None)?)
            }
            _ => None,
        };
        Ok((gguf, hparams))
    })?;
    let dict = PyDict::new(py);
    dict.set_item("path", gguf.path().display().to_string())?;
    dict.set_item("version", gguf.version())?;
    dict.set_item("file_bytes", gguf.file_bytes())?;
    dict.set_item("hyperparameters", hparams.map(|h| hyperparameters(py, &h)).transpose()?)?;
    let metadata = PyDict::new(py);
    for (key, value) in gguf.metadata() {
        metadata.set_item(key, metadata_value(py, value)?)?;
    }
    dict.set_item("metadata", metadata)?;
    let tensors = gguf.tensors().iter().map(|t| tensor(py, t)).collect::<PyResult<Vec<_>>>()?;
    dict.set_item("tensors", PyList::new(py, tensors)?)?;
    Ok(dict)
}

fn tensor<'py>(py: Python<'py>, t: &TensorInfo) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", &t.name)?;
    dict.set_item("type", t.dtype.name())?;
    dict.set_item("shape", &t.dims)?;
    dict.set_item("bytes", t.n_bytes)?;
    Ok(dict)
}

fn hyperparameters<'py>(py: Python<'py>, h: &Hparams) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("layers", h.n_layers)?;
    dict.set_item("hidden", h.hidden)?;
    dict.set_item("heads", h.n_heads)?;
    dict.set_item("kv_heads", h.n_kv_heads)?;
    dict.set_item("head_dim", h.head_dim)?;
    dict.set_item("expert_ffn", h.expert_ffn)?;
    dict.set_item("experts", h.n_experts)?;
    dict.set_item("experts_used", h.top_k)?;
    dict.set_item("vocab", h.vocab)?;
    dict.set_item("context_length", h.context_length)?;
    dict.set_item("rms_eps", h.rms_eps)?;
    let gating = match h.gating {
        Gating::Softmax => "softmax",
        Gating::Sigmoid => "sigmoid",
    };
    dict.set_item("gating", gating)?;
    let attention = h.attention.iter().map(|layer| {
        let dict = PyDict::new(py);
        dict.set_item("window", layer.window)?;
        dict.set_item("rope_base", layer.rope_base)?;
        Ok(dict)
    });
    dict.set_item("attention", PyList::new(py, attention.collect::<PyResult<Vec<_>>>()?)?)?;
    Ok(dict)
}

fn metadata_value<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::U8(v) => v.into_bound_py_any(py),
        Value::I8(v) => v.into_bound_py_any(py),
        Value::U16(v) => v.into_bound_py_any(py),
        Value::I16(v) => v.into_bound_py_any(py),
        Value::U32(v) => v.into_bound_py_any(py),
        Value::I32(v) => v.into_bound_py_any(py),
        Value::F32(v) => v.into_bound_py_any(py),
        Value::Bool(v) => v.into_bound_py_any(py),
        Value::String(v) => v.into_bound_py_any(py),
        Value::U64(v) => v.into_bound_py_any(py),
        Value::I64(v) => v.into_bound_py_any(py),
        Value::F64(v) => v.into_bound_py_any(py),
        Value::Array(array) => metadata_array(py, array).map(Bound::into_any),
    }
}

fn metadata_array<'py>(py: Python<'py>, array: &Array) -> PyResult<Bound<'py, PyList>> {
    match array {
        Array::U8(v) => PyList::new(py, v),
        Array::I8(v) => PyList::new(py, v),
        Array::U16(v) => PyList::new(py, v),
        Array::I16(v) => PyList::new(py, v),
        Array::U32(v) => PyList::new(py, v),
        Array::I32(v) => PyList::new(py, v),
        Array::F32(v) => PyList::new(py, v),
        Array::Bool(v) => PyList::new(py, v),
        Array::String(v) => PyList::new(py, v.iter()),
        Array::U64(v) => PyList::new(py, v),
        Array::I64(v) => PyList::new(py, v),
        Array::F64(v) => PyList::new(py, v),
    }
}

/// What a model file takes under a memory budget, in bytes, without loading it.
#[pyfunction]
#[pyo3(signature = (path, *, memory_budget=None, chunk=None, kv_type="f16", lm_head="full"))]
pub(crate) fn plan<'py>(
    py: Python<'py>,
    path: PathBuf,
    memory_budget: Option<Bound<'py, PyAny>>,
    chunk: Option<i128>,
    kv_type: &str,
    lm_head: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let mut options = ModelOptions::default();
    options.memory_budget = args::byte_count("memory_budget", memory_budget.as_ref())?;
    options.chunk = chunk.map(|n| args::at_least("chunk", n, 1)).transpose()?;
    options.kv_type = args::kv_type(kv_type)?;
    options.lm_head = lm_head.parse().map_err(errors::to_py)?;
    dicts::plan(py, &enter::detached(py, move || Model::plan_for(&path, &options))?)
}

/// Converts a checkpoint in the Hugging Face layout (config.json, *.safetensors, tokenizer.json) to a GGUF file.
///
/// type is f32, f16, bf16, q8_0 or q4_0. progress is called with (done, total) bytes. The file appears only when it
/// is complete.
#[pyfunction]
#[pyo3(signature = (hf_dir, out, r#type="q4_0", progress=None))]
pub(crate) fn convert<'py>(
    py: Python<'py>,
    hf_dir: PathBuf,
    out: PathBuf,
    r#type: &str,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let writable = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0];
    let dtype = weight_type(r#type, &writable, "f32, f16, bf16, q8_0, q4_0")?;
    let report = reporting(py, progress, |progress| {
        let mut options = ConvertOptions::new(dtype);
        options.progress = Some(progress);
        smallthinker_core::convert::convert(&hf_dir, &out, options)
    })?;
    let dict = PyDict::new(py);
    dict.set_item("tensors", report.tensors)?;
    dict.set_item("parameters", report.parameters)?;
    dict.set_item("data_bytes", report.data_bytes)?;
    dict.set_item("fallbacks", report.fallbacks)?;
    dict.set_item("skipped", report.skipped)?;
    Ok(dict)
}

/// Writes a model in F32, F16 or BF16 anew, with its weights in a smaller type: q8_0 or q4_0.
///
/// Norms and routers become F32. progress is called with (done, total) bytes. The file appears only when it is complete.
#[pyfunction]
#[pyo3(signature = (path, out, r#type="q4_0", progress=None))]
pub(crate) fn quantize<'py>(
    py: Python<'py>,
    path: PathBuf,
    out: PathBuf,
    r#type: &str,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let dtype = weight_type(r#type, &[DType::Q8_0, DType::Q4_0], "q8_0, q4_0")?;
    let report = reporting(py, progress, |progress| {
        let mut options = QuantizeOptions::new(dtype);
        options.progress = Some(progress);
        smallthinker_core::convert::quantize_file(&path, &out, options)
    })?;
    let dict = PyDict::new(py);
    dict.set_item("tensors", report.tensors)?;
    dict.set_item("quantized", report.quantized)?;
    dict.set_item("source_bytes", report.source_bytes)?;
    dict.set_item("data_bytes", report.data_bytes)?;
    dict.set_item("fallbacks", report.fallbacks)?;
    Ok(dict)
}

/// The type of a name, in any case.
fn weight_type(name: &str, writable: &[DType], allowed: &str) -> PyResult<DType> {
    let wanted = writable.iter().find(|t| t.name().eq_ignore_ascii_case(name));
    wanted.copied().ok_or_else(|| errors::argument("type", format!("{name:?}"), allowed))
}

/// Packs a GGUF model file: in the copy, each expert takes one read, straight into its place in memory.
///
/// progress is called with (done, total) bytes. The file appears only when it is complete.
#[pyfunction]
#[pyo3(signature = (path, out, progress=None))]
pub(crate) fn pack<'py>(
    py: Python<'py>,
    path: PathBuf,
    out: PathBuf,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let report = reporting(py, progress, |progress| {
        smallthinker_core::pack::pack(&path, &out, PackOptions { progress: Some(progress) })
    })?;
    let dict = PyDict::new(py);
    dict.set_item("tensors", report.tensors)?;
    dict.set_item("experts", report.experts)?;
    dict.set_item("data_bytes", report.data_bytes)?;
    Ok(dict)
}

/// Runs work that reports its progress. Ctrl-C stops it, and so does a callable that raises.
fn reporting<T: Send>(
    py: Python<'_>,
    progress: Option<Bound<'_, PyAny>>,
    work: impl FnOnce(&mut dyn FnMut(u64, u64) -> bool) -> Result<T> + Send,
) -> PyResult<T> {
    let progress = Progress::new(progress)?;
    let cancel = CancelFlag::new();
    let result = enter::interruptible(py, &Stop::new(cancel.clone()), || {
        work(&mut |done, total| {
            !cancel.is_cancelled() && progress.as_ref().is_none_or(|p| p.report(done, total))
        })
    });
    Progress::settle(progress.as_ref(), result)
}
