//! The class `Session`.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use smallthinker_core as core;
use smallthinker_core::GenerateOptions;

use crate::args::{self, Keywords};
use crate::enter;
use crate::generation::{Generation, Stream};
use crate::methods::generating_methods;
use crate::slot::{Lease, Slot};

/// One conversation with a model; Model.session() makes it. Used by one thread at a time, except cancel().
///
/// Appending only notes text; the next generation evaluates it. After an error or an interrupt the session keeps its
/// text and can go on.
#[pyclass(frozen, module = "smallthinker")]
pub(crate) struct Session {
    pub(crate) slot: Arc<Slot>,
}

#[pymethods]
impl Session {
    /// Adds text. Special tokens written in it stay ordinary text.
    fn append(&self, py: Python<'_>, text: &str) -> PyResult<()> {
        self.quick(py, |s| s.append(text))
    }

    /// Adds tokens.
    fn append_tokens(&self, py: Python<'_>, ids: &Bound<'_, PyAny>) -> PyResult<()> {
        let ids = args::token_ids(ids)?;
        self.quick(py, |s| s.append_tokens(&ids))
    }

    /// Evaluates what was appended, so that the next generation starts at once.
    fn evaluate(&self, py: Python<'_>) -> PyResult<()> {
        let mut lease = self.slot.take()?;
        enter::interruptible(py, &self.slot.stop, || lease.with(core::Session::evaluate))
    }

    /// Goes back to the first `position` tokens.
    fn rewind(&self, py: Python<'_>, position: i128) -> PyResult<()> {
        let position = args::at_least("position", position, 0)?;
        self.quick(py, |s| s.rewind(position))
    }

    /// A second conversation with the same past.
    fn fork(&self, py: Python<'_>) -> PyResult<Session> {
        let fork = self.quick(py, |s| s.fork())?;
        Ok(Session { slot: self.slot.handle.keep(fork) })
    }

    /// Writes the conversation to a file, for Model.load_session.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        self.quick(py, |s| s.save(&path))
    }

    /// Asks the work in progress to stop, from any thread. Does nothing when there is none.
    fn cancel(&self) {
        self.slot.stop.request();
    }

    /// Tokens so far, prompts and generated ones.
    #[getter]
    fn tokens(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.quick(py, |s| Ok(s.tokens().to_vec()))
    }

    /// Releases the conversation. Work in progress is cancelled. Closing twice is fine.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.slot.close());
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (*exception))]
    fn __exit__(&self, py: Python<'_>, exception: &Bound<'_, PyTuple>) {
        let _ = exception;
        self.close(py);
    }
}

generating_methods!(Session {
    /// Continues the conversation, after adding `prompt` if there is one.
    generate(prompt: Option<&str> = None) -> Generation = generate;
    /// Continues the conversation piece by piece, after adding `prompt` if there is one.
    stream(prompt: Option<&str> = None) -> Stream = stream;
    /// Makes the conversation these messages, a list of {"role": ..., "content": ...}, and answers. What they share
    /// with the conversation so far is not evaluated again.
    chat(messages: &Bound<'py, PyAny>) -> Generation = chat;
    /// As chat, piece by piece.
    stream_chat(messages: &Bound<'py, PyAny>) -> Stream = stream_chat;
});

impl Session {
    /// Work that takes no time to speak of.
    fn quick<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut core::Session) -> core::Result<T> + Send,
    ) -> PyResult<T> {
        let mut lease = self.slot.take()?;
        enter::detached(py, || lease.with(work))
    }

    fn with_prompt(&self, py: Python<'_>, prompt: Option<&str>) -> PyResult<Lease> {
        let mut lease = self.slot.take()?;
        if let Some(prompt) = prompt {
            enter::detached(py, || lease.with(|s| s.append(prompt)))?;
        }
        Ok(lease)
    }

    fn with_messages(&self, py: Python<'_>, messages: &Bound<'_, PyAny>) -> PyResult<Lease> {
        let messages = args::messages(messages)?;
        let mut lease = self.slot.take()?;
        enter::detached(py, || lease.with(|s| s.set_chat(&messages)))?;
        Ok(lease)
    }
}

type Text<'a> = Option<&'a str>;
type Messages<'a, 'py> = &'a Bound<'py, PyAny>;

fn generate(s: &Session, py: Python<'_>, prompt: Text<'_>, options: GenerateOptions) -> PyResult<Generation> {
    Generation::run(py, s.with_prompt(py, prompt)?, options)
}

fn stream(s: &Session, py: Python<'_>, prompt: Text<'_>, options: GenerateOptions) -> PyResult<Stream> {
    Stream::start(py, s.with_prompt(py, prompt)?, options)
}

fn chat(
    s: &Session,
    py: Python<'_>,
    messages: Messages<'_, '_>,
    options: GenerateOptions,
) -> PyResult<Generation> {
    Generation::run(py, s.with_messages(py, messages)?, options)
}

fn stream_chat(
    s: &Session,
    py: Python<'_>,
    messages: Messages<'_, '_>,
    options: GenerateOptions,
) -> PyResult<Stream> {
    Stream::start(py, s.with_messages(py, messages)?, options)
}
