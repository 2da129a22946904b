//! Figures as plain dicts; `smallthinker/_types.py` has their types.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use smallthinker_core::{
    ExpertKernel, ExpertStats, GenerationStats, LookAheadStats, ModelStats, Plan, Stage, StageTimes,
};

pub(crate) fn experts<'py>(py: Python<'py>, s: &ExpertStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("slots", s.slots)?;
    dict.set_item("resident", s.resident)?;
    dict.set_item("hits", s.hits)?;
    dict.set_item("misses", s.misses)?;
    dict.set_item("evictions", s.evictions)?;
    dict.set_item("bytes_read", s.bytes_read)?;
    dict.set_item("stall_s", s.stall.as_secs_f64())?;
    dict.set_item("reading_s", s.reading.as_secs_f64())?;
    dict.set_item("read_bytes_s", s.read_rate())?;
    dict.set_item("hit_rate", s.hit_rate())?;
    dict.set_item("look_ahead", look_ahead(py, &s.look_ahead)?)?;
    Ok(dict)
}

pub(crate) fn look_ahead<'py>(py: Python<'py>, s: &LookAheadStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("requested", s.requested)?;
    dict.set_item("on_time", s.on_time)?;
    dict.set_item("late", s.late)?;
    dict.set_item("wasted", s.wasted)?;
    dict.set_item("withdrawn", s.withdrawn)?;
    dict.set_item("evicted", s.evicted)?;
    Ok(dict)
}

/// What one token took, by stage; stages that took nothing are left out.
pub(crate) fn stages<'py>(
    py: Python<'py>,
    decode: &StageTimes,
    prefill: &StageTimes,
) -> PyResult<Bound<'py, PyDict>> {
    let all = PyDict::new(py);
    for stage in Stage::ALL {
        let (decode_ms, prefill_ms) = (ms(decode.time(stage)), ms(prefill.time(stage)));
        let bytes = decode.bytes(stage);
        if decode_ms > 0.0 || prefill_ms > 0.0 || bytes > 0 {
            let dict = PyDict::new(py);
            dict.set_item("decode_ms_per_token", decode_ms)?;
            dict.set_item("decode_bytes_per_token", bytes)?;
            dict.set_item("prefill_ms_per_token", prefill_ms)?;
            all.set_item(stage.name(), dict)?;
        }
    }
    Ok(all)
}

pub(crate) fn expert_kernels<'py>(py: Python<'py>, kernels: &[ExpertKernel]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for kernel in kernels {
        let dict = PyDict::new(py);
        dict.set_item("part", kernel.part)?;
        dict.set_item("type", kernel.dtype.to_string())?;
        dict.set_item("layers", kernel.layers)?;
        dict.set_item("sparse", kernel.sparse)?;
        list.append(dict)?;
    }
    Ok(list)
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn generation<'py>(py: Python<'py>, s: &GenerationStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("prompt_tokens", s.prompt_tokens)?;
    dict.set_item("cached_tokens", s.cached_tokens)?;
    dict.set_item("generated_tokens", s.generated_tokens)?;
    dict.set_item("prefill_tok_s", s.prefill_tokens_per_second())?;
    dict.set_item("decode_tok_s", s.decode_tokens_per_second())?;
    dict.set_item("prefill_s", s.prefill_time.as_secs_f64())?;
    dict.set_item("decode_s", s.decode_time.as_secs_f64())?;
    dict.set_item("time_to_first_token_s", s.time_to_first_token.as_secs_f64())?;
    dict.set_item("bytes_per_token", s.bytes_per_token())?;
    dict.set_item("bandwidth_bytes_s", s.bandwidth())?;
    dict.set_item("stages", stages(py, &s.decode_per_token(), &s.prefill_per_token())?)?;
    dict.set_item("expert_cache", experts(py, &s.experts)?)?;
    dict.set_item("decode_expert_cache", experts(py, &s.decode_experts)?)?;
    dict.set_item("read_bytes_per_token", s.read_bytes_per_token())?;
    dict.set_item("stall_share", s.stall_share())?;
    dict.set_item("kernels", s.kernels)?;
    dict.set_item("threads", s.threads)?;
    dict.set_item("lm_head", s.lm_head.name())?;
    dict.set_item("head_rows_per_token", s.head_rows_per_token())?;
    dict.set_item("seed", s.seed)?;
    Ok(dict)
}

pub(crate) fn model<'py>(py: Python<'py>, s: &ModelStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("load_s", s.load_time.as_secs_f64())?;
    dict.set_item("threads", s.threads)?;
    dict.set_item("kernels", s.kernels)?;
    dict.set_item("budget", s.budget)?;
    dict.set_item("budget_used", s.budget_used)?;
    dict.set_item("expert_cache", experts(py, &s.experts)?)?;
    dict.set_item("cache_policy", s.cache_policy.name())?;
    dict.set_item("lm_head", s.lm_head.name())?;
    dict.set_item("head_predictor", s.head_predictor.map(|p| p.name()))?;
    dict.set_item("direct_reads", s.direct_reads)?;
    dict.set_item("look_ahead", s.look_ahead)?;
    dict.set_item("sparse_up", s.sparse_up)?;
    dict.set_item("sparse_down", s.sparse_down)?;
    Ok(dict)
}

pub(crate) fn plan<'py>(py: Python<'py>, p: &Plan) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("budget", p.budget)?;
    dict.set_item("floor", p.floor)?;
    dict.set_item("per_token", p.per_token)?;
    dict.set_item("everything", p.everything)?;
    dict.set_item("resident", p.resident)?;
    dict.set_item("lm_head", p.lm_head)?;
    dict.set_item("tokenizer", p.tokenizer)?;
    dict.set_item("scratch", p.scratch)?;
    dict.set_item("read_buffers", p.read_buffers)?;
    dict.set_item("kv_first_page", p.kv_first_page)?;
    dict.set_item("kv_full_context", p.kv_full_context)?;
    dict.set_item("expert_bank", p.expert_bank)?;
    dict.set_item("expert_slot", p.expert_slot)?;
    dict.set_item("expert_slots", p.expert_slots)?;
    dict.set_item("experts", p.experts)?;
    dict.set_item("fits", p.fits())?;
    Ok(dict)
}
