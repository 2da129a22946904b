//! The one way from C into the library and back.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::status::{Result, remember, st_status};

/// Runs the body of an export. A failure, or a panic, becomes a status, and its message the thread's last.
pub(crate) fn guard(body: impl FnOnce() -> Result<()>) -> st_status {
    // Unwind safety: bodies write through the caller's pointers only as their last step, and a session
    // whose call panicked is refused afterwards (its mutex is poisoned).
    let (status, message) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return st_status::ST_OK,
        Ok(Err(failure)) => (failure.status, failure.message),
        Err(payload) => {
            let message = format!("internal error: {}", text_of(payload.as_ref()));
            // A payload's destructor may panic too.
            std::mem::forget(payload);
            (st_status::ST_INTERNAL, message)
        }
    };
    remember(&message);
    status
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "panic without a message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Failure, st_last_error_message};
    use std::ffi::CStr;

    fn last() -> String {
        // SAFETY: valid until the next failing call of this thread.
        unsafe { CStr::from_ptr(st_last_error_message()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_becomes_a_status_with_its_text() {
        let number = 7;
        assert_eq!(guard(|| panic!("broken promise {number}")), st_status::ST_INTERNAL);
        assert_eq!(last(), "internal error: broken promise 7");
        assert_eq!(guard(|| panic!("plain")), st_status::ST_INTERNAL);
        assert_eq!(last(), "internal error: plain");
        assert_eq!(guard(|| std::panic::panic_any(7)), st_status::ST_INTERNAL);
        assert_eq!(last(), "internal error: panic without a message");
    }

    #[test]
    fn success_keeps_the_last_message() {
        assert_eq!(guard(|| Err(Failure::argument("n", 3, "1 to 2"))), st_status::ST_INVALID_ARGUMENT);
        assert_eq!(guard(|| Ok(())), st_status::ST_OK);
        assert_eq!(last(), "invalid argument n: found 3, allowed: 1 to 2");
    }
}
