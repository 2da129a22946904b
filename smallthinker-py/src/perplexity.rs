//! The function `perplexity`.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use smallthinker_core::{CancelFlag, PerplexityOptions};

use crate::args;
use crate::enter::{self, Progress, Stop};
use crate::model::Model;

/// How well a model predicts a text, from the full head: perplexity and bits per byte.
///
/// The text is read in windows of `context` positions (None: 2048, or the model's if that is less) that begin `stride`
/// tokens apart (None: half of the context). Each begins with BOS if the model wants it, and an empty past. Every token
/// is scored once, in the first window that holds it; the first of the text only after BOS. bytes are those of the
/// tokens scored. progress is called with (done, total) tokens.
#[pyfunction]
#[pyo3(signature = (model, text, *, context=None, stride=None, progress=None))]
pub(crate) fn perplexity<'py>(
    py: Python<'py>,
    model: &Model,
    text: &str,
    context: Option<i128>,
    stride: Option<i128>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let model = model.handle.model()?;
    let options = PerplexityOptions {
        context: context.map(|n| args::at_least("context", n, 0)).transpose()?,
        stride: stride.map(|n| args::at_least("stride", n, 0)).transpose()?,
    };
    let progress = Progress::new(progress)?;
    let cancel = CancelFlag::new();
    let scored = enter::interruptible(py, &Stop::new(cancel.clone()), || {
        let mut report = |done, total| progress.as_ref().is_none_or(|p| p.report(done as u64, total as u64));
        smallthinker_core::perplexity(&model, text, &options, &cancel, &mut report)
    });
    let found = Progress::settle(progress.as_ref(), scored)?;
    let dict = PyDict::new(py);
    dict.set_item("perplexity", found.perplexity())?;
    dict.set_item("bits_per_byte", found.bits_per_byte())?;
    dict.set_item("bits_per_token", found.bits_per_token())?;
    dict.set_item("nats", found.nats)?;
    dict.set_item("tokens", found.tokens)?;
    dict.set_item("bytes", found.bytes)?;
    dict.set_item("windows", found.windows)?;
    dict.set_item("context", found.context)?;
    dict.set_item("stride", found.stride)?;
    dict.set_item("bos", found.bos)?;
    Ok(dict)
}
