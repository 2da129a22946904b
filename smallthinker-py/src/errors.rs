//! Errors of the core as Python exceptions (defined in `smallthinker/_errors.py`, where a class can have
//! two parents: ours and the builtin that fits).

use pyo3::prelude::*;
use smallthinker_core::{Error, ErrorKind};

/// The exception for an error of the core.
pub(crate) fn to_py(error: Error) -> PyErr {
    let class = match error.kind() {
        ErrorKind::NotFound => "NotFound",
        ErrorKind::Io => "IoError",
        ErrorKind::Malformed | ErrorKind::Unsupported => "ModelFormatError",
        ErrorKind::InvalidArgument => "InvalidArgument",
        ErrorKind::ContextOverflow => "ContextOverflow",
        ErrorKind::Budget => "BudgetError",
        ErrorKind::Cancelled => "Cancelled",
        _ => "InternalError",
    };
    Python::attach(|py| {
        let exception = new(py, class, &error.to_string());
        if let Error::Io { path, source, .. } = &error {
            // What `except OSError as e` may look at. The message is complete without them, so a failure to set
            // them is no reason to lose it.
            let value = exception.value(py);
            let _ = value.setattr("errno", source.raw_os_error());
            let _ = value.setattr("filename", path);
        }
        exception
    })
}

/// A value outside its range.
pub(crate) fn argument(name: &str, found: impl std::fmt::Display, allowed: &str) -> PyErr {
    let message = format!("invalid argument {name}: found {found}, allowed: {allowed}");
    Python::attach(|py| new(py, "InvalidArgument", &message))
}

/// An object used after it was closed, or by two threads at once.
pub(crate) fn misuse(message: &str) -> PyErr {
    Python::attach(|py| new(py, "SmallThinkerError", message))
}

/// A panic of the library, caught at its edge.
pub(crate) fn internal(message: &str) -> PyErr {
    Python::attach(|py| new(py, "InternalError", message))
}

fn new(py: Python<'_>, class: &str, message: &str) -> PyErr {
    let make = || py.import("smallthinker._errors")?.getattr(class)?.call1((message,));
    match make() {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
