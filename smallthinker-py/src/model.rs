//! The class `Model`.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use smallthinker_core as core;
use smallthinker_core::tokenizer::Specials;
use smallthinker_core::{GenerateOptions, ModelOptions};

use crate::args::{self, Keywords};
use crate::enter::{self, Progress, Stop};
use crate::generation::{Generation, Stream};
use crate::methods::generating_methods;
use crate::session::Session;
use crate::slot::{Handle, Lease};
use crate::{dicts, errors};

/// A SmallThinker model, loaded from a GGUF file. Thread-safe; share it between sessions and threads.
///
/// path None is the model that comes with the package. memory_budget (bytes, or a text such as "8GiB") covers
/// weights, caches and buffers; None takes what the model needs, as far as the machine has it. progress is called
/// with (done, total) bytes while loading. Other arguments change speed or limits, not results, except gating,
/// which corrects files that state their router wrongly, and lm_head: "sparse" computes only logits that may be the
/// largest (others are minus infinity), from the predictor that the file brings or a sketch made while loading;
/// generations can still ask for "full". cache_policy is what the expert cache evicts under a budget
/// that does not hold all experts: "lru" (least recently used) or "cyclic" (next use expected last); None is "cyclic".
/// look_ahead says whether to read experts then that the next layer is expected to choose; None does. buffered_reads=True
/// reads them through the system's page cache, which may keep what the budget has no room for; by default they are
/// read past it, where the file system allows that.
#[pyclass(frozen, module = "smallthinker")]
pub(crate) struct Model {
    pub(crate) handle: Arc<Handle>,
    path: PathBuf,
}

#[pymethods]
impl Model {
    #[new]
    #[pyo3(signature = (path=None, *, memory_budget=None, threads=None, lm_head="full", kernels=None,
        context_length=None, chunk=None, kv_type="f16", gating=None, cache_policy=None, look_ahead=None,
        buffered_reads=false, progress=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        path: Option<PathBuf>,
        memory_budget: Option<Bound<'_, PyAny>>,
        threads: Option<i128>,
        lm_head: &str,
        kernels: Option<String>,
        context_length: Option<i128>,
        chunk: Option<i128>,
        kv_type: &str,
        gating: Option<&str>,
        cache_policy: Option<&str>,
        look_ahead: Option<bool>,
        buffered_reads: bool,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Model> {
        let path = match path {
            Some(path) => path,
            None => py.import("smallthinker._shipped")?.call_method0("shipped_model_path")?.extract()?,
        };
        let mut options = ModelOptions::default();
        options.memory_budget = args::byte_count("memory_budget", memory_budget.as_ref())?;
        options.threads = threads.map(|n| args::at_least("threads", n, 1)).transpose()?;
        options.kernels = kernels;
        options.context_length =
            context_length.map(|n| args::at_least("context_length", n, 1)).transpose()?;
        options.chunk = chunk.map(|n| args::at_least("chunk", n, 1)).transpose()?;
        options.kv_type = args::kv_type(kv_type)?;
        options.lm_head = lm_head.parse().map_err(errors::to_py)?;
        options.gating = args::gating(gating)?;
        if let Some(name) = cache_policy {
            options.cache_policy = name.parse().map_err(errors::to_py)?;
        }
        options.look_ahead = look_ahead;
        options.buffered_reads = buffered_reads;
        let progress = Progress::new(progress)?;
        let stop = Stop::new(options.cancel.clone());
        if let Some(progress) = progress.clone() {
            let stop = stop.clone();
            options.progress = Some(Box::new(move |done, total| {
                if !progress.report(done, total) {
                    stop.request();
                }
            }));
        }
        let opened = enter::interruptible(py, &stop, || core::Model::open_with(&path, options));
        let model = Progress::settle(progress.as_ref(), opened)?;
        Ok(Model { path: model.path().to_owned(), handle: Handle::new(model) })
    }

    /// Token ids of a text. With specials=True, special tokens written in the text become their ids; do that only
    /// with text you trust.
    #[pyo3(signature = (text, *, specials=false))]
    fn tokenize(&self, py: Python<'_>, text: &str, specials: bool) -> PyResult<Vec<u32>> {
        let model = self.handle.model()?;
        let specials = if specials { Specials::Parse } else { Specials::Text };
        enter::detached(py, || model.tokenizer().encode(text, specials))
    }

    /// Text of token ids, special tokens written out.
    fn detokenize(&self, py: Python<'_>, ids: &Bound<'_, PyAny>) -> PyResult<String> {
        let model = self.handle.model()?;
        let ids = args::token_ids(ids)?;
        enter::detached(py, || model.tokenizer().decode(&ids, false))
    }

    /// Logits after each of the tokens, float32 [len(ids), vocab_size].
    fn logits<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let ids = args::token_ids(ids)?;
        let model = self.handle.model()?;
        let (rows, vocab) = (ids.len(), model.hparams().vocab);
        let session = enter::detached(py, || model.session())?;
        let mut lease = self.handle.keep(session).take()?;
        let stop = lease.slot.stop.clone();
        let mut logits = enter::interruptible(py, &stop, || {
            lease.with(|session| {
                session.append_tokens(&ids)?;
                session.logits()
            })
        })?;
        // A model that wants BOS got one before the ids; its row is not asked for.
        let extra = logits.len().saturating_sub(rows * vocab);
        logits.drain(..extra);
        PyArray1::from_vec(py, logits).reshape([rows, vocab])
    }

    /// A new, empty conversation.
    fn session(&self, py: Python<'_>) -> PyResult<Session> {
        let model = self.handle.model()?;
        let session = enter::detached(py, || model.session())?;
        Ok(Session { slot: self.handle.keep(session) })
    }

    /// A conversation from a file that Session.save wrote with the same model file and kv_type.
    fn load_session(&self, py: Python<'_>, path: PathBuf) -> PyResult<Session> {
        let model = self.handle.model()?;
        let session = enter::detached(py, || core::Session::load(&model, &path))?;
        Ok(Session { slot: self.handle.keep(session) })
    }

    /// Changes the memory budget, bytes or a text such as "8GiB", while the model is in use: experts are evicted at
    /// once if it is smaller, and room for more of them is made if it is larger. Sessions keep what they have; no result
    /// changes. Waits for the token or the part of a prompt that is being computed.
    fn set_memory_budget(&self, py: Python<'_>, memory_budget: &Bound<'_, PyAny>) -> PyResult<()> {
        let model = self.handle.model()?;
        let bytes = args::byte_count("memory_budget", Some(memory_budget))?.unwrap_or_default();
        enter::detached(py, || model.set_memory_budget(bytes))
    }

    /// How the memory budget was divided when the model was loaded, in bytes.
    fn plan<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dicts::plan(py, self.handle.model()?.plan())
    }

    /// Present state and counters.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dicts::model(py, &self.handle.model()?.stats())
    }

    /// Releases the model and its sessions. Work in progress is cancelled. Closing twice is fine.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.handle.close());
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyResult<PyRef<'_, Self>> {
        this.handle.model()?;
        Ok(this)
    }

    #[pyo3(signature = (*exception))]
    fn __exit__(&self, py: Python<'_>, exception: &Bound<'_, PyTuple>) {
        let _ = exception;
        self.close(py);
    }

    fn __repr__(&self) -> String {
        let state = if self.handle.is_closed() { ", closed" } else { "" };
        format!("Model({:?}{state})", self.path.display().to_string())
    }

    /// Whether close() was called.
    #[getter]
    fn closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// The file (the first shard of a sharded model).
    #[getter]
    fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// general.name of the file.
    #[getter]
    fn name(&self) -> PyResult<Option<String>> {
        Ok(self.handle.model()?.name().map(str::to_owned))
    }

    /// Positions of a session at most.
    #[getter]
    fn context_length(&self) -> PyResult<usize> {
        Ok(self.handle.model()?.context_length())
    }

    /// Number of tokens in the vocabulary.
    #[getter]
    fn vocab_size(&self) -> PyResult<usize> {
        Ok(self.handle.model()?.hparams().vocab)
    }
}

generating_methods!(Model {
    /// Continues a text. Special tokens written in it stay ordinary text.
    generate(prompt: &str) -> Generation = generate;
    /// Continues a text, piece by piece.
    stream(prompt: &str) -> Stream = stream;
    /// Answers a conversation, a list of {"role": ..., "content": ...}.
    chat(messages: &Bound<'py, PyAny>) -> Generation = chat;
    /// Answers a conversation, piece by piece.
    stream_chat(messages: &Bound<'py, PyAny>) -> Stream = stream_chat;
});

impl Model {
    /// A new session prepared by `prepare`, in use.
    fn prepared(
        &self,
        py: Python<'_>,
        prepare: impl FnOnce(&mut core::Session) -> core::Result<()> + Send,
    ) -> PyResult<Lease> {
        let model = self.handle.model()?;
        let session = enter::detached(py, || {
            let mut session = model.session()?;
            prepare(&mut session)?;
            Ok(session)
        })?;
        self.handle.keep(session).take()
    }
}

fn generate(model: &Model, py: Python<'_>, prompt: &str, options: GenerateOptions) -> PyResult<Generation> {
    Generation::run(py, model.prepared(py, |s| s.append(prompt))?, options)
}

fn stream(model: &Model, py: Python<'_>, prompt: &str, options: GenerateOptions) -> PyResult<Stream> {
    Stream::start(py, model.prepared(py, |s| s.append(prompt))?, options)
}

fn chat(
    model: &Model,
    py: Python<'_>,
    messages: &Bound<'_, PyAny>,
    options: GenerateOptions,
) -> PyResult<Generation> {
    let messages = args::messages(messages)?;
    Generation::run(py, model.prepared(py, |s| s.set_chat(&messages))?, options)
}

fn stream_chat(
    model: &Model,
    py: Python<'_>,
    messages: &Bound<'_, PyAny>,
    options: GenerateOptions,
) -> PyResult<Stream> {
    let messages = args::messages(messages)?;
    Stream::start(py, model.prepared(py, |s| s.set_chat(&messages))?, options)
}
