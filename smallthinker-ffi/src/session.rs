//! Sessions: one conversation each.

use std::ffi::c_char;
use std::sync::{Mutex, MutexGuard, TryLockError};

use smallthinker_core::{CancelFlag, Message, Session};

use crate::guard::guard;
use crate::handle::{array, c_text, give, output, path, required, take_back, text};
use crate::model::{give_array, st_model};
use crate::status::{Failure, Result, st_status};

/// One conversation with a model. Used by one thread at a time, any of them: a call while another is in
/// progress returns ST_BUSY. Only st_session_cancel may be called at any time.
pub struct st_session {
    pub(crate) cancel: CancelFlag,
    inner: Mutex<Session>,
}

// A cancelling thread looks at the session while another one works with it.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<st_session>();
};

/// One message of a chat.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_message {
    /// "system", "user", "assistant" or what else the model's template knows; NUL-terminated UTF-8.
    pub role: *const c_char,
    /// UTF-8; never read as control tokens.
    pub content: *const c_char,
    /// Bytes of `content`.
    pub content_length: usize,
}

impl st_session {
    fn new(session: Session) -> *mut st_session {
        Box::into_raw(Box::new(st_session { cancel: session.cancel_flag(), inner: Mutex::new(session) }))
    }

    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, Session>> {
        self.inner.try_lock().map_err(|error| {
            let (status, message) = match error {
                TryLockError::WouldBlock => {
                    (st_status::ST_BUSY, "session is in use by another call; wait for it or cancel it")
                }
                TryLockError::Poisoned(_) => {
                    (st_status::ST_INTERNAL, "session can't be used after an internal error; free it")
                }
            };
            Failure { status, message: message.to_owned() }
        })
    }
}

/// Makes an empty conversation. On success *session is new; free it with st_session_free. It stays valid when
/// `model` is freed.
///
/// Thread-safe. Errors: ST_INVALID_ARGUMENT; ST_BUDGET if the model's budget has no room for its buffers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_new(model: *const st_model, session: *mut *mut st_session) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (model, out) = unsafe { (required(model, "model")?, output(session, "session")?) };
        out.write(st_session::new(model.inner.session()?));
        Ok(())
    })
}

/// Frees a session; NULL is allowed.
///
/// No other call, st_session_cancel included, may be using it meanwhile or afterwards: join the threads that
/// may cancel it first. Not from its own callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_free(session: *mut st_session) {
    guard(|| {
        if !session.is_null() {
            // SAFETY: from Box::into_raw in `st_session::new`; by the caller's contract not freed yet.
            drop(unsafe { Box::from_raw(session) });
        }
        Ok(())
    });
}

/// Stops the call in progress on the session, in prefill, decode or a wait for the disk, within the time of
/// one layer; generation then ends with ST_FINISH_CANCELLED, other calls with ST_CANCELLED. Without a call in
/// progress it does nothing: the next call starts afresh.
///
/// Thread-safe, and safe in a signal handler, as long as the session is not being freed. Errors:
/// ST_INVALID_ARGUMENT if `session` is NULL (do not risk that one in a signal handler).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_cancel(session: *const st_session) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract; only the atomic flag is touched.
        unsafe { required(session, "session") }?.cancel.cancel();
        Ok(())
    })
}

/// Adds `length` bytes of UTF-8 to the conversation. Control tokens written in it stay ordinary text. They
/// are evaluated by the next generation or st_session_evaluate.
///
/// Errors: ST_CONTEXT_OVERFLOW if they don't fit, ST_INVALID_ARGUMENT, ST_BUSY; nothing is added then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_append_text(
    session: *mut st_session,
    text: *const c_char,
    length: usize,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (session, text) = unsafe { (required(session, "session")?, self::text(text, length, "text")?) };
        Ok(session.lock()?.append(text)?)
    })
}

/// Adds `count` tokens to the conversation; otherwise as st_session_append_text. At the start of a
/// conversation the model's BOS token goes before them, if it wants one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_append_tokens(
    session: *mut st_session,
    tokens: *const u32,
    count: usize,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (session, tokens) = unsafe { (required(session, "session")?, array(tokens, count, "tokens")?) };
        Ok(session.lock()?.append_tokens(tokens)?)
    })
}

/// Makes the conversation these `count` messages, written by the model's chat template and ready for the
/// assistant's turn. The part that is already evaluated is not evaluated again. Message text never becomes a
/// control token, so it can't forge a turn.
///
/// Errors: ST_CONTEXT_OVERFLOW, ST_INVALID_ARGUMENT (also when the template refuses the messages), ST_BUSY;
/// the conversation is unchanged then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_set_chat(
    session: *mut st_session,
    messages: *const st_message,
    count: usize,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (session, messages) =
            unsafe { (required(session, "session")?, array(messages, count, "messages")?) };
        let convert = |(i, m): (usize, &st_message)| {
            // SAFETY: the caller's contract for the texts of each message.
            let (role, content) = unsafe {
                (
                    c_text(m.role, &format!("messages[{i}].role"))?,
                    text(m.content, m.content_length, &format!("messages[{i}].content"))?,
                )
            };
            Ok(Message { role: role.to_owned(), content: content.to_owned() })
        };
        let messages = messages.iter().enumerate().map(convert).collect::<Result<Vec<_>>>()?;
        Ok(session.lock()?.set_chat(&messages)?)
    })
}

/// Evaluates the tokens added since the last evaluation, so that a later generation starts at once.
///
/// Errors: ST_CANCELLED, ST_IO, ST_BUDGET, ST_BUSY, ST_INVALID_ARGUMENT. The conversation stays; the call can
/// be repeated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_evaluate(session: *mut st_session) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let session = unsafe { required(session, "session") }?;
        Ok(session.lock()?.evaluate()?)
    })
}

/// Makes a second conversation with the same past; what is evaluated is shared, not computed again.
///
/// On success *fork is new; free it with st_session_free. Errors: ST_BUDGET, ST_BUSY, ST_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_fork(
    session: *const st_session,
    fork: *mut *mut st_session,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (session, out) = unsafe { (required(session, "session")?, output(fork, "fork")?) };
        let forked = session.lock()?.fork()?;
        out.write(st_session::new(forked));
        Ok(())
    })
}

/// Goes back to the first `position` tokens of the conversation.
///
/// Errors: ST_INVALID_ARGUMENT if it has fewer, ST_BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_rewind(session: *mut st_session, position: usize) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let session = unsafe { required(session, "session") }?;
        Ok(session.lock()?.rewind(position)?)
    })
}

/// Writes the conversation and its KV cache to `file`, which appears when it is complete.
///
/// Errors: ST_IO, ST_NOT_FOUND (the folder), ST_BUSY, ST_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_save(session: *const st_session, file: *const c_char) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (session, file) = unsafe { (required(session, "session")?, path(file, "file")?) };
        Ok(session.lock()?.save(file)?)
    })
}

/// Reads a conversation that st_session_save wrote with the same model file and kv_type.
///
/// On success *session is new; free it with st_session_free.
/// Errors: ST_NOT_FOUND, ST_IO, ST_MALFORMED, ST_UNSUPPORTED (another model or kv_type), ST_BUDGET,
/// ST_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_load(
    model: *const st_model,
    file: *const c_char,
    session: *mut *mut st_session,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (model, file, out) =
            unsafe { (required(model, "model")?, path(file, "file")?, output(session, "session")?) };
        out.write(st_session::new(Session::load(&model.inner, file)?));
        Ok(())
    })
}

/// Writes the number of tokens of the conversation, prompts and generated ones.
///
/// Errors: ST_BUSY, ST_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_token_count(session: *const st_session, count: *mut usize) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (session, out) = unsafe { (required(session, "session")?, output(count, "count")?) };
        out.write(session.lock()?.tokens().len());
        Ok(())
    })
}

/// Copies the tokens of the conversation.
///
/// On success *tokens is a new array of *count tokens, not NULL even for none; free it with st_tokens_free.
/// Errors: ST_BUSY, ST_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_tokens(
    session: *const st_session,
    tokens: *mut *mut u32,
    count: *mut usize,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let session = unsafe { required(session, "session") }?;
        // SAFETY: the caller's contract.
        unsafe { give_array(tokens, count, || Ok(session.lock()?.tokens().to_vec())) }
    })
}

/// Evaluates the whole conversation again and gives the logits after each of its tokens, always of the full
/// head.
///
/// On success *logits is a new array of *count floats, one row of st_model_vocab_size floats for each token;
/// free it with st_logits_free. Errors: ST_CANCELLED, ST_IO, ST_BUDGET, ST_BUSY, ST_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_logits(
    session: *mut st_session,
    logits: *mut *mut f32,
    count: *mut usize,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (session, out, out_count) =
            unsafe { (required(session, "session")?, output(logits, "logits")?, output(count, "count")?) };
        let values = session.lock()?.logits()?;
        out.write(give(&values)?);
        out_count.write(values.len());
        Ok(())
    })
}

/// Frees logits that this library returned; NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_logits_free(logits: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe { take_back(logits) }
}
