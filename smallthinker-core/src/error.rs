//! The one error type of the library. Every message names the file or argument, the field, what was
//! found and what is allowed, because the person reading it usually holds only the message.

use std::io;
use std::path::{Path, PathBuf};

/// Result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted, as a verb phrase: "open", "read header".
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A read ended before the bytes that the file's own directory promises.
    #[error("{}: short read at offset {offset}: expected {expected} bytes, got {got}", path.display())]
    ShortRead {
        /// The file.
        path: PathBuf,
        /// Byte offset of the read.
        offset: u64,
        /// Bytes wanted.
        expected: u64,
        /// Bytes received before the end of the file.
        got: u64,
    },
    /// A file breaks the rules of its own format.
    #[error("{}: malformed {field}: found {found}, allowed: {allowed}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Metadata key, tensor name or header field.
        field: String,
        /// The value found.
        found: String,
        /// The values allowed.
        allowed: String,
    },
    /// A file is well-formed but asks for something this version does not do.
    #[error("{}: unsupported {field}: found {found}, supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Metadata key, tensor name or header field.
        field: String,
        /// The value found.
        found: String,
        /// The values supported.
        supported: String,
    },
    /// The caller passed a value outside its range.
    #[error("invalid argument {name}: found {found}, allowed: {allowed}")]
    InvalidArgument {
        /// Name of the argument or option.
        name: &'static str,
        /// The value found.
        found: String,
        /// The values allowed.
        allowed: String,
    },
    /// The conversation does not fit the context window. Nothing was changed.
    #[error("context overflow: {needed} positions needed, {limit} available")]
    ContextOverflow {
        /// Positions the request needs in all.
        needed: usize,
        /// Positions the context has.
        limit: usize,
    },
    /// The memory budget is too small for what was asked.
    #[error("memory budget too small for {what}: needs {needed} bytes, budget leaves {available} bytes")]
    Budget {
        /// What needed the memory.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// The caller's cancel flag was seen.
    #[error("cancelled")]
    Cancelled,
    /// A computed value is not a number; the weights or the file are damaged.
    #[error("layer {layer}: {what} is not finite")]
    NotFinite {
        /// Layer index.
        layer: usize,
        /// Which value.
        what: &'static str,
    },
    /// A chat template could not be parsed or rendered.
    #[error("chat template: {message}")]
    Template {
        /// The template engine's message.
        message: String,
    },
    /// A part of the library broke its own promise (a bug worth a report), caught before it did harm.
    #[error("internal error: {message}")]
    Internal {
        /// What broke.
        message: String,
    },
}

/// Coarse class of an [`Error`], stable across versions; the C status codes and Python exceptions map from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file does not exist.
    NotFound,
    /// Any other failure of the operating system, short reads included.
    Io,
    /// A damaged or hostile file.
    Malformed,
    /// A valid file or value that this version cannot serve.
    Unsupported,
    /// A bad argument.
    InvalidArgument,
    /// The context is full.
    ContextOverflow,
    /// The memory budget is too small.
    Budget,
    /// Cancelled by the caller.
    Cancelled,
    /// Non-finite numbers, template failures and internal errors.
    Internal,
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Error::Io { .. } | Error::ShortRead { .. } => ErrorKind::Io,
            Error::Malformed { .. } => ErrorKind::Malformed,
            Error::Unsupported { .. } => ErrorKind::Unsupported,
            Error::InvalidArgument { .. } | Error::Template { .. } => ErrorKind::InvalidArgument,
            Error::ContextOverflow { .. } => ErrorKind::ContextOverflow,
            Error::Budget { .. } => ErrorKind::Budget,
            Error::Cancelled => ErrorKind::Cancelled,
            Error::NotFinite { .. } | Error::Internal { .. } => ErrorKind::Internal,
        }
    }

    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Error::Io { path: path.to_owned(), action, source }
    }

    pub(crate) fn malformed(
        path: &Path,
        field: impl Into<String>,
        found: impl ToString,
        allowed: impl Into<String>,
    ) -> Self {
        Error::Malformed {
            path: path.to_owned(),
            field: field.into(),
            found: found.to_string(),
            allowed: allowed.into(),
        }
    }

    pub(crate) fn unsupported(
        path: &Path,
        field: impl Into<String>,
        found: impl ToString,
        supported: impl Into<String>,
    ) -> Self {
        Error::Unsupported {
            path: path.to_owned(),
            field: field.into(),
            found: found.to_string(),
            supported: supported.into(),
        }
    }

    pub(crate) fn argument(name: &'static str, found: impl ToString, allowed: impl Into<String>) -> Self {
        Error::InvalidArgument { name, found: found.to_string(), allowed: allowed.into() }
    }
}
