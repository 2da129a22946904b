//! What generating returns: everything at once, or a stream of pieces.

use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use smallthinker_core as core;
use smallthinker_core::{GenerateOptions, Generator, Piece};

use crate::enter::Stop;
use crate::slot::Lease;
use crate::{dicts, enter, errors};

/// Log probabilities of one step.
#[pyclass(frozen, get_all, module = "smallthinker")]
pub(crate) struct TokenLogprobs {
    /// The chosen token.
    token: u32,
    /// Its log probability (natural logarithm).
    logprob: f32,
    /// The most likely tokens and their log probabilities, most likely first.
    top: Vec<(u32, f32)>,
}

#[pymethods]
impl TokenLogprobs {
    fn __repr__(&self) -> String {
        format!("TokenLogprobs(token={}, logprob={:.4}, top={:?})", self.token, self.logprob, self.top)
    }
}

fn logprobs_list<'py>(py: Python<'py>, all: &[core::TokenLogprobs]) -> PyResult<Bound<'py, PyList>> {
    let items = all
        .iter()
        .map(|l| Bound::new(py, TokenLogprobs { token: l.token, logprob: l.logprob, top: l.top.clone() }));
    PyList::new(py, items.collect::<PyResult<Vec<_>>>()?)
}

/// A finished generation.
#[pyclass(frozen, get_all, module = "smallthinker")]
pub(crate) struct Generation {
    /// The text.
    text: String,
    /// Its tokens.
    tokens: Py<PyList>,
    /// Why it ended: "stop", "length", "context" or "cancelled".
    finish_reason: String,
    /// How fast it was.
    stats: Py<PyDict>,
    /// Log probabilities of each token; None unless asked for.
    logprobs: Option<Py<PyList>>,
}

#[pymethods]
impl Generation {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let text = self.text.as_str().into_pyobject(py)?.repr()?;
        Ok(format!("Generation(text={text}, finish_reason='{}')", self.finish_reason))
    }

    fn __str__(&self) -> &str {
        &self.text
    }
}

impl Generation {
    /// Generates to the end.
    pub(crate) fn run(py: Python<'_>, mut lease: Lease, options: GenerateOptions) -> PyResult<Generation> {
        let wants_logprobs = options.logprobs.is_some();
        let stop = lease.slot.stop.clone();
        let done = enter::interruptible(py, &stop, || lease.with(|s| s.generate(options)?.complete()))?;
        let logprobs = wants_logprobs.then(|| logprobs_list(py, &done.logprobs)).transpose()?;
        Ok(Generation {
            text: done.text,
            tokens: PyList::new(py, &done.tokens)?.unbind(),
            finish_reason: done.finish_reason.to_string(),
            stats: dicts::generation(py, &done.stats)?.unbind(),
            logprobs: logprobs.map(Bound::unbind),
        })
    }
}

/// An iterator over the pieces of a text while it is generated.
///
/// The session belongs to the stream until the last piece, close(), or the end of the stream's life.
#[pyclass(frozen, module = "smallthinker")]
pub(crate) struct Stream {
    inner: Mutex<Inner>,
    stop: Stop,
}

struct Inner {
    /// The session, until the end.
    lease: Option<Lease>,
    generator: Generator,
    started: bool,
    wants_logprobs: bool,
    tokens: Vec<u32>,
    logprobs: Vec<core::TokenLogprobs>,
}

impl Stream {
    /// Starts a generation; nothing is evaluated before the first piece is asked for.
    pub(crate) fn start(py: Python<'_>, mut lease: Lease, options: GenerateOptions) -> PyResult<Stream> {
        let wants_logprobs = options.logprobs.is_some();
        let stop = lease.slot.stop.clone();
        let generator = enter::detached(py, || lease.with(|s| s.start(options)))?;
        let (tokens, logprobs) = (Vec::new(), Vec::new());
        let lease = Some(lease);
        let inner = Inner { lease, generator, started: false, wants_logprobs, tokens, logprobs };
        Ok(Stream { inner: Mutex::new(inner), stop })
    }

    fn inner(&self) -> PyResult<std::sync::MutexGuard<'_, Inner>> {
        self.inner.try_lock().map_err(|_| errors::misuse("the stream is in use by another thread"))
    }
}

impl Inner {
    /// One step. The first evaluates the prompt and may take long; the others take one token's time.
    fn step(&mut self, py: Python<'_>, stop: &Stop) -> PyResult<Option<Piece>> {
        let Some(lease) = &mut self.lease else { return Ok(None) };
        if lease.slot.is_closed() {
            return Err(lease.slot.closed_error());
        }
        let generator = &mut self.generator;
        let step = || lease.with(|session| generator.step(session).transpose());
        if std::mem::replace(&mut self.started, true) {
            py.check_signals()?;
            stop.renew();
            enter::detached(py, step)
        } else {
            enter::interruptible(py, stop, step)
        }
    }
}

#[pymethods]
impl Stream {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let mut inner = self.inner()?;
        loop {
            let piece = inner.step(py, &self.stop);
            if !matches!(piece, Ok(Some(_))) {
                let lease = inner.lease.take();
                py.detach(|| drop(lease));
            }
            let Some(piece) = piece? else { return Ok(None) };
            inner.tokens.extend(piece.token);
            inner.logprobs.extend(piece.logprobs);
            if !piece.text.is_empty() {
                return Ok(Some(piece.text));
            }
        }
    }

    /// Asks the generation to stop, from any thread. The iteration then ends, with finish_reason "cancelled".
    fn cancel(&self) {
        self.stop.request();
    }

    /// Gives the session back; the iteration ends.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let lease = self.inner()?.lease.take();
        py.detach(|| drop(lease));
        Ok(())
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (*exception))]
    fn __exit__(&self, py: Python<'_>, exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        let _ = exception;
        self.close(py)
    }

    /// Tokens so far.
    #[getter]
    fn tokens(&self) -> PyResult<Vec<u32>> {
        Ok(self.inner()?.tokens.clone())
    }

    /// Why the generation ended: "stop", "length", "context" or "cancelled"; None while it goes on.
    #[getter]
    fn finish_reason(&self) -> PyResult<Option<String>> {
        Ok(self.inner()?.generator.finish_reason().map(|r| r.to_string()))
    }

    /// Figures so far.
    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dicts::generation(py, self.inner()?.generator.stats())
    }

    /// Log probabilities of each token so far; None unless asked for.
    #[getter]
    fn logprobs<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        let inner = self.inner()?;
        inner.wants_logprobs.then(|| logprobs_list(py, &inner.logprobs)).transpose()
    }
}
