//! The function `heads`.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use smallthinker_core::{CancelFlag, HeadOptions, HeadQuality};

use crate::args;
use crate::enter::{self, Progress, Stop};
use crate::model::Model;

/// Compares the sparse LM head with the full one at every position of a text. The model must be opened with lm_head="sparse".
///
/// "sparse" is the sparse head as generations use it; "shares" has the quality of fixed shares of the rows, the best by
/// estimate. rows are those computed per position; bytes what is read for them and for the predictor, over the head's;
/// top1 the share of positions whose likeliest token was found, recall20 that of the 20 likeliest tokens; kl the mean
/// Kullback-Leibler divergence in nats. The text is read in windows of `context` positions (None: 2048, or the
/// model's if that is less). progress is called with (done, total) positions.
#[pyfunction]
#[pyo3(signature = (model, text, *, shares=None, context=None, progress=None))]
pub(crate) fn heads<'py>(
    py: Python<'py>,
    model: &Model,
    text: &str,
    shares: Option<Vec<f64>>,
    context: Option<i128>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let model = model.handle.model()?;
    let options = HeadOptions {
        shares: shares.unwrap_or_default(),
        context: context.map(|n| args::at_least("context", n, 0)).transpose()?,
    };
    let progress = Progress::new(progress)?;
    let cancel = CancelFlag::new();
    let compared = enter::interruptible(py, &Stop::new(cancel.clone()), || {
        let mut report = |done, total| progress.as_ref().is_none_or(|p| p.report(done as u64, total as u64));
        smallthinker_core::compare_heads(&model, text, &options, &cancel, &mut report)
    });
    let found = Progress::settle(progress.as_ref(), compared)?;
    let dict = PyDict::new(py);
    dict.set_item("predictor", found.predictor.name())?;
    dict.set_item("positions", found.positions)?;
    dict.set_item("vocab", found.vocab)?;
    dict.set_item("head_bytes", found.head_bytes)?;
    dict.set_item("predictor_bytes", found.predictor_bytes)?;
    dict.set_item("sparse", quality(py, &found.sparse)?)?;
    let shares = found.shares.iter().map(|(share, found)| {
        let dict = quality(py, found)?;
        dict.set_item("share", share)?;
        Ok(dict)
    });
    dict.set_item("shares", PyList::new(py, shares.collect::<PyResult<Vec<_>>>()?)?)?;
    Ok(dict)
}

fn quality<'py>(py: Python<'py>, q: &HeadQuality) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("rows", q.rows)?;
    dict.set_item("most_rows", q.most_rows)?;
    dict.set_item("bytes", q.bytes)?;
    dict.set_item("top1", q.top1)?;
    dict.set_item("recall20", q.recall)?;
    dict.set_item("kl", q.kl)?;
    dict.set_item("worst_kl", q.worst_kl)?;
    Ok(dict)
}
