//! The one way from Python into work that takes time: without the GIL, stopped by Ctrl-C, panics caught.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use smallthinker_core::{CancelFlag, Result};

use crate::errors;

/// How long Ctrl-C may wait to be seen. Each look takes the GIL, which other threads may be using.
const POLL: Duration = Duration::from_millis(50);

/// A request to stop that survives the start of the work, which resets the core's flag.
#[derive(Clone)]
pub(crate) struct Stop {
    flag: CancelFlag,
    wanted: Arc<AtomicBool>,
}

impl Stop {
    pub(crate) fn new(flag: CancelFlag) -> Stop {
        Stop { flag, wanted: Arc::default() }
    }

    /// Asks the work in progress to stop.
    pub(crate) fn request(&self) {
        self.wanted.store(true, Ordering::Release);
        self.flag.cancel();
    }

    /// Forgets earlier requests: new work begins.
    pub(crate) fn clear(&self) {
        self.wanted.store(false, Ordering::Release);
    }

    /// Repeats the request, if there was one.
    pub(crate) fn renew(&self) {
        if self.wanted.load(Ordering::Acquire) {
            self.flag.cancel();
        }
    }
}

/// Runs `work` on a thread of its own while this one, detached, looks for signals (which Python delivers only to
/// the main thread). A signal handler that raises requests the stop; when the work has ended, its exception is the
/// result.
pub(crate) fn interruptible<T, F>(py: Python<'_>, stop: &Stop, work: F) -> PyResult<T>
where
    T: Send,
    F: FnOnce() -> Result<T> + Send,
{
    let (interrupt, result) = py.detach(|| {
        std::thread::scope(|scope| {
            let (running, finished) = channel::<()>();
            let worker =
                std::thread::Builder::new().name("smallthinker-call".into()).spawn_scoped(scope, || {
                    let _running = running; // dropped when the work ends, whichever way
                    work()
                });
            let worker = match worker {
                Ok(worker) => worker,
                Err(e) => return (None, Err(errors::internal(&format!("cannot start a thread: {e}")))),
            };
            let mut interrupt = None;
            while finished.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                if interrupt.is_none() {
                    interrupt = Python::attach(|py| py.check_signals()).err();
                }
                if interrupt.is_some() {
                    stop.request();
                }
                stop.renew();
            }
            let result = worker.join().map_err(|_| errors::internal("a panic in the engine"));
            (interrupt, result.and_then(|r| r.map_err(errors::to_py)))
        })
    });
    match interrupt {
        Some(interrupt) => Err(interrupt),
        None => result,
    }
}

/// Runs short work on this thread without the GIL.
pub(crate) fn detached<T, F>(py: Python<'_>, work: F) -> PyResult<T>
where
    T: Send,
    F: FnOnce() -> Result<T> + Send,
{
    let result = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    match result {
        Ok(result) => result.map_err(errors::to_py),
        Err(_) => Err(errors::internal("a panic in the engine")),
    }
}

/// A Python callable `(done, total)`, called from whichever thread works. If it raises, the work stops and
/// the exception is the result.
#[derive(Clone)]
pub(crate) struct Progress {
    callable: Arc<Py<PyAny>>,
    raised: Arc<Mutex<Option<PyErr>>>,
}

impl Progress {
    pub(crate) fn new(callable: Option<Bound<'_, PyAny>>) -> PyResult<Option<Progress>> {
        match callable {
            None => Ok(None),
            Some(c) if c.is_callable() => {
                Ok(Some(Progress { callable: Arc::new(c.unbind()), raised: Arc::default() }))
            }
            Some(c) => Err(errors::argument("progress", c.repr()?, "a callable (done, total) or None")),
        }
    }

    /// Returns whether to go on.
    pub(crate) fn report(&self, done: u64, total: u64) -> bool {
        match Python::attach(|py| self.callable.call1(py, (done, total)).map(drop)) {
            Ok(()) => true,
            Err(error) => {
                lock(&self.raised).get_or_insert(error);
                false
            }
        }
    }

    /// The result of the work, or what the callable raised.
    pub(crate) fn settle<T>(progress: Option<&Progress>, result: PyResult<T>) -> PyResult<T> {
        match progress.and_then(|p| lock(&p.raised).take()) {
            Some(raised) => Err(raised),
            None => result,
        }
    }
}

/// Locks; a panic elsewhere leaves these values whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
