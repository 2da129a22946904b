//! The functions `bench` and `profile`.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use smallthinker_core as core;
use smallthinker_core::CancelFlag;
use smallthinker_core::bench::{BenchOptions, BenchReport, Spread, StorageReport};
use smallthinker_core::tokenizer::Specials;

use crate::enter::{self, Progress, Stop};
use crate::model::Model;
use crate::{args, dicts};

/// Measures prefill and decode speed of a model with a random prompt, and how much of this machine's memory bandwidth
/// decoding uses. One run that is not counted comes first. Given a text, its first tokens are the prompt and those after them
/// are decoded; without one, the decoded tokens are random too. progress is called with (done, total) repetitions.
#[pyfunction]
#[pyo3(signature = (model, *, prompt_tokens=512, gen_tokens=128, repetitions=3, text=None, progress=None))]
pub(crate) fn bench<'py>(
    py: Python<'py>,
    model: &Model,
    prompt_tokens: i128,
    gen_tokens: i128,
    repetitions: i128,
    text: Option<&str>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let model = model.handle.model()?;
    let encode = |text| enter::detached(py, || model.tokenizer().encode(text, Specials::Text));
    let options = BenchOptions {
        prompt_tokens: args::at_least("prompt_tokens", prompt_tokens, 1)?,
        gen_tokens: args::at_least("gen_tokens", gen_tokens, 1)?,
        repetitions: args::at_least("repetitions", repetitions, 1)?,
        text: text.map(encode).transpose()?,
        detailed: false,
    };
    let report = measure(py, &model, &options, progress)?;
    let dict = common(py, &model, &options, &report)?;
    dict.set_item("repetitions", options.repetitions)?;
    dict.set_item("prefill_tok_s", spread(py, report.prefill)?)?;
    dict.set_item("decode_tok_s", spread(py, report.decode)?)?;
    dict.set_item("peak_rss_bytes", report.peak_rss)?;
    Ok(dict)
}

/// Runs a random prompt once and tells where the time went: milliseconds and bytes of weights, keys and values per token
/// by stage of the forward pass, beside this machine's memory bandwidth. Timing gate and up one by one costs a few percent
/// of the speed (bench tells the speed itself). Rows of up are requested from memory while gate computes, so a part of
/// their reading counts as gate's.
#[pyfunction]
#[pyo3(signature = (model, *, prompt_tokens=128, gen_tokens=64))]
pub(crate) fn profile<'py>(
    py: Python<'py>,
    model: &Model,
    prompt_tokens: i128,
    gen_tokens: i128,
) -> PyResult<Bound<'py, PyDict>> {
    let model = model.handle.model()?;
    let options = BenchOptions {
        prompt_tokens: args::at_least("prompt_tokens", prompt_tokens, 1)?,
        gen_tokens: args::at_least("gen_tokens", gen_tokens, 1)?,
        repetitions: 1,
        text: None,
        detailed: true,
    };
    let report = measure(py, &model, &options, None)?;
    let dict = common(py, &model, &options, &report)?;
    dict.set_item("prefill_tok_s", report.prefill.median)?;
    dict.set_item("decode_tok_s", report.decode.median)?;
    dict.set_item("expert_kernels", dicts::expert_kernels(py, &model.expert_kernels())?)?;
    Ok(dict)
}

fn measure(
    py: Python<'_>,
    model: &core::Model,
    options: &BenchOptions,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<BenchReport> {
    let progress = Progress::new(progress)?;
    let cancel = CancelFlag::new();
    let measured = enter::interruptible(py, &Stop::new(cancel.clone()), || {
        let mut report = |done, total| progress.as_ref().is_none_or(|p| p.report(done as u64, total as u64));
        core::bench::run(model, options, &cancel, &mut report)
    });
    Progress::settle(progress.as_ref(), measured)
}

/// What both functions return.
fn common<'py>(
    py: Python<'py>,
    model: &core::Model,
    options: &BenchOptions,
    report: &BenchReport,
) -> PyResult<Bound<'py, PyDict>> {
    let stats = model.stats();
    let dict = PyDict::new(py);
    dict.set_item("model", model.path().display().to_string())?;
    dict.set_item("prompt_tokens", options.prompt_tokens)?;
    dict.set_item("gen_tokens", options.gen_tokens)?;
    dict.set_item("threads", stats.threads)?;
    dict.set_item("kernels", stats.kernels)?;
    dict.set_item("load_s", report.load_time.as_secs_f64())?;
    dict.set_item("time_to_first_token_s", report.time_to_first_token.median)?;
    dict.set_item("prefill_ms_per_token", dicts::ms(report.prefill_token.time))?;
    dict.set_item("decode_ms_per_token", dicts::ms(report.decode_token.time))?;
    dict.set_item("stages", dicts::stages(py, &report.decode_token.stages, &report.prefill_token.stages)?)?;
    dict.set_item("bytes_per_token", report.bytes_per_token)?;
    dict.set_item("decode_bandwidth_bytes_s", report.decode_bandwidth)?;
    dict.set_item("read_bandwidth_bytes_s", report.read_bandwidth)?;
    dict.set_item("read_bandwidth_plain_bytes_s", report.read_bandwidth_plain)?;
    dict.set_item("read_bandwidth_share", report.read_bandwidth_share)?;
    dict.set_item("expert_cache", dicts::experts(py, &report.experts)?)?;
    dict.set_item("decode_expert_cache", dicts::experts(py, &report.decode_experts)?)?;
    dict.set_item("read_bytes_per_token", report.read_bytes_per_token)?;
    dict.set_item("stall_share", report.stall_share)?;
    dict.set_item("storage", report.storage.map(|s| storage(py, &s)).transpose()?)?;
    Ok(dict)
}

fn storage<'py>(py: Python<'py>, s: &StorageReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("bandwidth_bytes_s", s.bandwidth)?;
    // JSON has no infinity.
    dict.set_item("limit_tok_s", s.limit.is_finite().then_some(s.limit))?;
    dict.set_item("limit_share", s.limit_share)?;
    Ok(dict)
}

fn spread(py: Python<'_>, s: Spread) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("min", s.min)?;
    dict.set_item("median", s.median)?;
    dict.set_item("max", s.max)?;
    Ok(dict)
}
