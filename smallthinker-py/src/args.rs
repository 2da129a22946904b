//! Python arguments as options of the core, refused with messages that name argument, value and range.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use smallthinker_core::{Gating, GenerateOptions, KvType, Message, parse_bytes};

use crate::errors;

/// `n` if `T` holds it and it is at least `min`.
pub(crate) fn at_least<T: TryFrom<i128>>(name: &str, n: i128, min: i128) -> PyResult<T> {
    let fits = T::try_from(n).ok().filter(|_| n >= min);
    fits.ok_or_else(|| errors::argument(name, n, &format!("integers from {min}, in the range of the field")))
}

/// A number of bytes: an integer or a text such as `"8GiB"`.
pub(crate) fn byte_count(name: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<u64>> {
    let Some(value) = value else { return Ok(None) };
    if let Ok(text) = value.cast::<PyString>() {
        let text = text.to_cow()?;
        let allowed = "a number with an optional unit, such as 8GiB or 512M";
        return parse_bytes(&text)
            .map(Some)
            .map_err(|_| errors::argument(name, format!("{text:?}"), allowed));
    }
    match value.extract() {
        Ok(n) => at_least(name, n, 0).map(Some),
        Err(_) => {
            let found = value.get_type().name()?;
            Err(PyTypeError::new_err(format!("argument '{name}': expected int or str, found {found}")))
        }
    }
}

pub(crate) fn kv_type(name: &str) -> PyResult<KvType> {
    match name {
        "f16" => Ok(KvType::F16),
        "f32" => Ok(KvType::F32),
        "q8_0" => Ok(KvType::Q8_0),
        "q4_0" => Ok(KvType::Q4_0),
        other => {
            let allowed = "\"f16\", \"f32\", \"q8_0\" or \"q4_0\"";
            Err(errors::argument("kv_type", format!("{other:?}"), allowed))
        }
    }
}

pub(crate) fn gating(name: Option<&str>) -> PyResult<Option<Gating>> {
    match name {
        None => Ok(None),
        Some("softmax") => Ok(Some(Gating::Softmax)),
        Some("sigmoid") => Ok(Some(Gating::Sigmoid)),
        Some(other) => {
            Err(errors::argument("gating", format!("{other:?}"), "\"softmax\", \"sigmoid\" or None"))
        }
    }
}

/// Token ids from any iterable of integers.
pub(crate) fn token_ids(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if ids.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err("argument 'ids': expected integers, found str"));
    }
    ids.try_iter()?.map(|id| id?.extract().and_then(|n| at_least("ids", n, 0))).collect()
}

/// Messages from `[{"role": ..., "content": ...}, ...]`.
pub(crate) fn messages(messages: &Bound<'_, PyAny>) -> PyResult<Vec<Message>> {
    let wrong = |found: String| {
        let wanted = "expected a list of {\"role\": str, \"content\": str}";
        PyTypeError::new_err(format!("argument 'messages': {wanted}, found {found}"))
    };
    if messages.is_instance_of::<PyString>() || messages.is_instance_of::<PyDict>() {
        return Err(wrong(messages.get_type().name()?.to_string()));
    }
    let mut out = Vec::new();
    for (i, message) in messages.try_iter()?.enumerate() {
        let message = message?;
        let dict =
            message.cast::<PyDict>().map_err(|_| wrong(format!("item {i}: {}", type_name(&message))))?;
        let field = |name: &str| match dict.get_item(name)? {
            None => Err(wrong(format!("item {i} without \"{name}\""))),
            Some(value) => {
                value.extract().map_err(|_| wrong(format!("item {i}: \"{name}\" is {}", type_name(&value))))
            }
        };
        if let Some(key) =
            dict.keys().iter().find(|k| !k.eq("role").is_ok_and(|e| e) && !k.eq("content").is_ok_and(|e| e))
        {
            return Err(wrong(format!("item {i} with key {}", key.repr()?)));
        }
        out.push(Message { role: field("role")?, content: field("content")? });
    }
    if out.is_empty() {
        return Err(errors::argument("messages", "an empty list", "at least one message"));
    }
    Ok(out)
}

fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "?".into(), |n| n.to_string())
}

/// Stop strings: one or several.
fn stop_strings(stop: Option<Bound<'_, PyAny>>) -> PyResult<Vec<String>> {
    let Some(stop) = stop else { return Ok(Vec::new()) };
    if let Ok(one) = stop.extract::<String>() {
        return Ok(vec![one]);
    }
    stop.extract().map_err(|_| {
        PyTypeError::new_err(format!(
            "argument 'stop': expected str or list of str, found {}",
            type_name(&stop)
        ))
    })
}

fn logit_bias(bias: Option<Bound<'_, PyDict>>) -> PyResult<Vec<(u32, f32)>> {
    let pairs = bias.iter().flat_map(|b| b.iter());
    pairs.map(|(id, value)| Ok((at_least("logit_bias", id.extract()?, 0)?, value.extract()?))).collect()
}

/// Keyword arguments of every generating method.
pub(crate) struct Keywords<'py> {
    pub(crate) max_tokens: Option<i128>,
    pub(crate) temperature: f32,
    pub(crate) top_k: i128,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
    pub(crate) repetition_penalty: f32,
    pub(crate) logit_bias: Option<Bound<'py, PyDict>>,
    pub(crate) seed: Option<i128>,
    pub(crate) stop: Option<Bound<'py, PyAny>>,
    pub(crate) logprobs: Option<i128>,
    pub(crate) lm_head: Option<&'py str>,
}

impl Keywords<'_> {
    /// The core's options. Ranges of floats are checked there.
    pub(crate) fn options(self) -> PyResult<GenerateOptions> {
        let mut options = GenerateOptions::default();
        options.max_tokens = self.max_tokens.map(|n| at_least("max_tokens", n, 0)).transpose()?;
        options.sampling.temperature = self.temperature;
        options.sampling.top_k = at_least("top_k", self.top_k, 0)?;
        options.sampling.top_p = self.top_p;
        options.sampling.min_p = self.min_p;
        options.sampling.repetition_penalty = self.repetition_penalty;
        options.sampling.logit_bias = logit_bias(self.logit_bias)?;
        options.sampling.seed = self.seed.map(|n| at_least("seed", n, 0)).transpose()?;
        options.stop = stop_strings(self.stop)?;
        options.logprobs = self.logprobs.map(|n| at_least("logprobs", n, 0)).transpose()?;
        options.lm_head = self.lm_head.map(|name| name.parse().map_err(errors::to_py)).transpose()?;
        Ok(options)
    }
}
