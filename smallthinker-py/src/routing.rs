//! The functions `trace`, `policies` and `routing_profile`.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use smallthinker_core::routing::{self, CacheBudget, PassKind, RecordOptions, Replay, ReplayPolicy, Trace};
use smallthinker_core::{CancelFlag, Error, SamplingParams};

use crate::enter::{self, Stop};
use crate::model::Model;
use crate::{args, errors};

/// Cache sizes of a replay that names none, in percent of all experts.
const SHARES: [u32; 12] = [5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90];

/// Evaluates a text, continues it, and writes a file that says which experts its tokens chose.
///
/// max_tokens are decoded after the text, greedily unless temperature is above 0. Of the text itself, the first
/// prompt_tokens are evaluated together and the rest one by one and recorded as decoded; None takes all of them together.
#[pyfunction]
#[pyo3(signature = (model, prompt, path, *, max_tokens=128, prompt_tokens=None, temperature=0.0, seed=None))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn trace<'py>(
    py: Python<'py>,
    model: &Model,
    prompt: &str,
    path: PathBuf,
    max_tokens: i128,
    prompt_tokens: Option<i128>,
    temperature: f32,
    seed: Option<i128>,
) -> PyResult<Bound<'py, PyDict>> {
    let model = model.handle.model()?;
    let seed = seed.map(|n| args::at_least("seed", n, 0)).transpose()?;
    let options = RecordOptions {
        max_tokens: args::at_least("max_tokens", max_tokens, 0)?,
        sampling: SamplingParams { temperature, seed, ..SamplingParams::default() },
        prompt_tokens: prompt_tokens.map(|n| args::at_least("prompt_tokens", n, 1)).transpose()?,
    };
    let cancel = CancelFlag::new();
    let recorded = enter::interruptible(py, &Stop::new(cancel.clone()), || {
        let trace = routing::record(&model, prompt, options, &cancel)?;
        trace.write(&path)?;
        Ok(trace)
    })?;
    described(py, &recorded)
}

/// Evaluates a text token by token and tells how it uses the model: of each layer's experts the share of tokens that each of them
/// was used by, and the share of their neurons that ReLU set to zero.
#[pyfunction]
pub(crate) fn routing_profile<'py>(
    py: Python<'py>,
    model: &Model,
    text: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let model = model.handle.model()?;
    let cancel = CancelFlag::new();
    let stop = Stop::new(cancel.clone());
    let found = enter::interruptible(py, &stop, || routing::profile(&model, text, &cancel))?;
    let dict = PyDict::new(py);
    dict.set_item("tokens", found.tokens)?;
    dict.set_item("experts_used", model.hparams().top_k)?;
    dict.set_item("frequency", found.frequency)?;
    dict.set_item("sparsity", found.sparsity)?;
    Ok(dict)
}

/// Replays a file of trace() against the policies of the expert cache, and against the one that knows the future.
///
/// budgets are sizes of the cache: bytes, texts such as "2GiB", or shares of all experts such as "25%". The cache is
/// empty at first and sees the prompt too; hit_rate and bytes_per_token are those of decoded tokens.
#[pyfunction]
#[pyo3(signature = (path, *, budgets=None))]
pub(crate) fn policies<'py>(
    py: Python<'py>,
    path: PathBuf,
    budgets: Option<Vec<Bound<'py, PyAny>>>,
) -> PyResult<Bound<'py, PyDict>> {
    let budgets = sizes(budgets, &SHARES)?;
    let cancel = CancelFlag::new();
    let (trace, replays) = enter::interruptible(py, &Stop::new(cancel.clone()), || {
        let trace = Trace::read(&path)?;
        let mut replays = Vec::new();
        for slots in all_slots(&trace, &budgets) {
            for policy in ReplayPolicy::all() {
                if cancel.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                replays.push(routing::replay(&trace, policy, slots)?);
            }
        }
        Ok((trace, replays))
    })?;
    let dict = described(py, &trace)?;
    let replays = replays.iter().map(|r| replay(py, &trace, r)).collect::<PyResult<Vec<_>>>()?;
    dict.set_item("replays", PyList::new(py, replays)?)?;
    Ok(dict)
}

/// Cache sizes from an argument, or these percentages.
pub(crate) fn sizes(budgets: Option<Vec<Bound<'_, PyAny>>>, shares: &[u32]) -> PyResult<Vec<CacheBudget>> {
    match budgets {
        Some(budgets) => budgets.iter().map(budget).collect(),
        None => Ok(shares.iter().map(|percent| CacheBudget::Share(f64::from(*percent) / 100.0)).collect()),
    }
}

/// The different numbers of slots of some cache sizes, in ascending order.
pub(crate) fn all_slots(trace: &Trace, budgets: &[CacheBudget]) -> Vec<usize> {
    let mut slots: Vec<usize> = budgets.iter().map(|budget| trace.shape().slots(*budget)).collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}

fn budget(value: &Bound<'_, PyAny>) -> PyResult<CacheBudget> {
    if let Ok(text) = value.extract::<String>() {
        return text.parse().map_err(errors::to_py);
    }
    let bytes = args::byte_count("budgets", Some(value))?;
    Ok(CacheBudget::Bytes(bytes.unwrap_or_default()))
}

/// What all functions on traces return.
pub(crate) fn described<'py>(py: Python<'py>, trace: &Trace) -> PyResult<Bound<'py, PyDict>> {
    let shape = trace.shape();
    let dict = PyDict::new(py);
    dict.set_item("model", &shape.model)?;
    dict.set_item("layers", shape.layers())?;
    dict.set_item("experts", shape.experts())?;
    dict.set_item("experts_used", shape.top_k)?;
    dict.set_item("prompt_tokens", trace.tokens(PassKind::Prompt))?;
    dict.set_item("decode_tokens", trace.tokens(PassKind::Decode))?;
    dict.set_item("expert_slot", shape.slot_bytes)?;
    let touched = shape.expert_bytes.iter().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
    dict.set_item("expert_bytes_per_token", touched.saturating_mul(shape.top_k as u64))?;
    Ok(dict)
}

fn replay<'py>(py: Python<'py>, trace: &Trace, replay: &Replay) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("policy", replay.policy.name())?;
    dict.set_item("expert_slots", replay.slots)?;
    dict.set_item("cache_bytes", (replay.slots as u64).saturating_mul(trace.shape().slot_bytes))?;
    dict.set_item("hit_rate", replay.hit_rate())?;
    dict.set_item("bytes_per_token", replay.bytes_per_token())?;
    dict.set_item("hits", replay.decode.hits)?;
    dict.set_item("misses", replay.decode.misses)?;
    dict.set_item("prompt_hits", replay.prompt.hits)?;
    dict.set_item("prompt_misses", replay.prompt.misses)?;
    Ok(dict)
}
