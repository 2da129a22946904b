//! Status codes, and the message of the last failure.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};

use smallthinker_core::{Error, ErrorKind};

/// What a call came to. The numbers never change; 11 to 99 are kept for later versions, so treat an unknown
/// number as a failure.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum st_status {
    /// Done.
    ST_OK = 0,
    /// The file does not exist.
    ST_NOT_FOUND = 1,
    /// The system refused to read or write a file, or the file ended early.
    ST_IO = 2,
    /// A damaged file.
    ST_MALFORMED = 3,
    /// A valid file that this version cannot serve.
    ST_UNSUPPORTED = 4,
    /// An argument is NULL or outside its range; the message names it.
    ST_INVALID_ARGUMENT = 5,
    /// The conversation does not fit the context. Nothing was changed.
    ST_CONTEXT_OVERFLOW = 6,
    /// The memory budget, or the machine's memory, is too small.
    ST_BUDGET = 7,
    /// The caller cancelled the call.
    ST_CANCELLED = 8,
    /// A failure of the library itself, or a model whose numbers are not finite.
    ST_INTERNAL = 9,
    /// The session is in use: by another thread, or by the generation that called this callback.
    ST_BUSY = 10,
}

use st_status::*;

/// A status that is not ST_OK, with its message.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: st_status,
    pub(crate) message: String,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn argument(name: &str, found: impl std::fmt::Display, allowed: &str) -> Failure {
        let message = format!("invalid argument {name}: found {found}, allowed: {allowed}");
        Failure { status: ST_INVALID_ARGUMENT, message }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = match error.kind() {
            ErrorKind::NotFound => ST_NOT_FOUND,
            ErrorKind::Io => ST_IO,
            ErrorKind::Malformed => ST_MALFORMED,
            ErrorKind::Unsupported => ST_UNSUPPORTED,
            ErrorKind::InvalidArgument => ST_INVALID_ARGUMENT,
            ErrorKind::ContextOverflow => ST_CONTEXT_OVERFLOW,
            ErrorKind::Budget => ST_BUDGET,
            ErrorKind::Cancelled => ST_CANCELLED,
            // Also kinds that the core may add before this crate has a number for them.
            _ => ST_INTERNAL,
        };
        Failure { status, message: error.to_string() }
    }
}

thread_local! {
    static LAST: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Keeps the message for this thread.
pub(crate) fn remember(message: &str) {
    // C strings end at the first NUL: show it instead of cutting the message there.
    let message = CString::new(message.replace('\0', "\\0")).ok();
    // Fails only while the thread ends, when nobody can read the message any more.
    let _ = LAST.try_with(|last| *last.borrow_mut() = message);
}

/// Message of the last call that failed on this thread; "" if none did.
///
/// Never NULL. UTF-8. Reading does not consume it. It belongs to the library and is valid until the next call
/// that fails on this thread, or the thread's end. Calls that succeed leave it alone.
#[unsafe(no_mangle)]
pub extern "C" fn st_last_error_message() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ref().map_or(c"".as_ptr(), |m| m.as_ptr())).unwrap_or(c"".as_ptr())
}

/// Name of a status, such as "ST_IO"; "unknown status" for a number that is none.
///
/// Never NULL; static memory. Can be called from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn st_status_name(status: i32) -> *const c_char {
    let name: &CStr = match status {
        0 => c"ST_OK",
        1 => c"ST_NOT_FOUND",
        2 => c"ST_IO",
        3 => c"ST_MALFORMED",
        4 => c"ST_UNSUPPORTED",
        5 => c"ST_INVALID_ARGUMENT",
        6 => c"ST_CONTEXT_OVERFLOW",
        7 => c"ST_BUDGET",
        8 => c"ST_CANCELLED",
        9 => c"ST_INTERNAL",
        10 => c"ST_BUSY",
        _ => c"unknown status",
    };
    name.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io, path::PathBuf};

    fn name(status: i32) -> String {
        // SAFETY: st_status_name returns static NUL-terminated strings.
        unsafe { CStr::from_ptr(st_status_name(status)) }.to_string_lossy().into_owned()
    }

    #[test]
    fn numbers_are_fixed() {
        // Programs are compiled with these numbers: a change here breaks them.
        let all = [
            (ST_OK, 0),
            (ST_NOT_FOUND, 1),
            (ST_IO, 2),
            (ST_MALFORMED, 3),
            (ST_UNSUPPORTED, 4),
            (ST_INVALID_ARGUMENT, 5),
            (ST_CONTEXT_OVERFLOW, 6),
            (ST_BUDGET, 7),
            (ST_CANCELLED, 8),
            (ST_INTERNAL, 9),
            (ST_BUSY, 10),
        ];
        for (status, number) in all {
            assert_eq!(status as i32, number);
            assert_eq!(name(number), format!("{status:?}"));
        }
        assert_eq!(name(11), "unknown status");
        assert_eq!(name(-1), "unknown status");
    }

    #[test]
    fn errors_map_to_their_kind() {
        let file = || PathBuf::from("m.gguf");
        let text = String::new;
        let io = |kind: io::ErrorKind| Error::Io { path: file(), action: "open", source: kind.into() };
        let cases = [
            (io(io::ErrorKind::NotFound), ST_NOT_FOUND),
            (io(io::ErrorKind::PermissionDenied), ST_IO),
            (Error::ShortRead { path: file(), offset: 0, expected: 2, got: 1 }, ST_IO),
            (Error::Malformed { path: file(), field: text(), found: text(), allowed: text() }, ST_MALFORMED),
            (
                Error::Unsupported { path: file(), field: text(), found: text(), supported: text() },
                ST_UNSUPPORTED,
            ),
            (Error::InvalidArgument { name: "x", found: text(), allowed: text() }, ST_INVALID_ARGUMENT),
            (Error::Template { message: text() }, ST_INVALID_ARGUMENT),
            (Error::ContextOverflow { needed: 2, limit: 1 }, ST_CONTEXT_OVERFLOW),
            (Error::Budget { what: text(), needed: 2, available: 1 }, ST_BUDGET),
            (Error::Cancelled, ST_CANCELLED),
            (Error::NotFinite { layer: 0, what: "x" }, ST_INTERNAL),
            (Error::Internal { message: text() }, ST_INTERNAL),
        ];
        for (error, status) in cases {
            let message = error.to_string();
            let failure = Failure::from(error);
            assert_eq!(failure.status, status, "{message}");
            assert_eq!(failure.message, message);
        }
    }

    #[test]
    fn a_message_with_nul_is_kept_whole() {
        remember("before\0after");
        // SAFETY: valid until the next failing call of this thread.
        let read = || unsafe { CStr::from_ptr(st_last_error_message()) }.to_string_lossy().into_owned();
        assert_eq!(read(), "before\\0after");
        assert_eq!(read(), "before\\0after");
        // Every thread has its own.
        let other = std::thread::spawn(|| LAST.with(|last| last.borrow().is_none())).join();
        assert_eq!(other.ok(), Some(true));
    }
}
