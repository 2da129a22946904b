//! Generation, streamed through a callback.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use smallthinker_core::{FinishReason, Piece, TokenLogprobs};

use crate::guard::guard;
use crate::handle::{give_text, optional_output, required};
use crate::options::{generate_options, st_generate_options};
use crate::session::st_session;
use crate::sized::SizedOutput;
use crate::stats::{st_finish_reason, st_generation_stats};
use crate::status::st_status;

/// A token and its log probability (natural logarithm).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct st_token_logprob {
    /// Token id.
    pub token: u32,
    /// At most 0; minus infinity for a token that can't occur.
    pub logprob: f32,
}

/// One step of a generation. The callback may use it, and what it points to, until it returns.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct st_piece {
    /// Text that became certain: whole UTF-8 characters, no part of a stop text. May be empty; a NUL follows
    /// it.
    pub text: *const c_char,
    /// Bytes of `text`, without that NUL.
    pub text_length: usize,
    /// 1 if a token belongs to this step; 0 if this is text that was held back to the end.
    pub has_token: i32,
    /// The token, if there is one.
    pub token: u32,
    /// 1 if log probabilities were asked for and this step has a token; else 0, and they are zero.
    pub has_logprob: i32,
    /// Log probability of the token, by the model alone: without temperature, penalty and bias.
    pub logprob: f32,
    /// The most likely tokens, most likely first.
    pub top: *const st_token_logprob,
    /// Length of `top`.
    pub top_count: usize,
}

/// Called for each step of a generation, on the thread that called st_session_generate. Return 0 to go on;
/// anything else ends the generation with ST_FINISH_CANCELLED. Must return normally: no longjmp, no C++
/// exception. The session is in use meanwhile: of its functions only st_session_cancel works (others return
/// ST_BUSY).
pub type st_piece_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, piece: *const st_piece) -> c_int>;

/// Continues the conversation. The generated tokens become part of it. `options` may be NULL for the
/// defaults, which are greedy and unlimited; so may be `on_piece` (called with `user_data` for each step),
/// `text` and `stats`.
///
/// On success *text is the whole text as a new NUL-terminated string (free it with st_string_free; its length
/// is in stats->text_length), and *stats, whose `size` is set first, says why and how fast. Both are also
/// written after a cancellation, which is no error.
/// Errors: ST_INVALID_ARGUMENT (options outside their range, no token to continue), ST_IO, ST_BUDGET,
/// ST_INTERNAL, ST_BUSY. The session keeps its tokens, those generated so far included, and can be used
/// again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_session_generate(
    session: *mut st_session,
    options: *const st_generate_options,
    user_data: *mut c_void,
    on_piece: st_piece_callback,
    text: *mut *mut c_char,
    stats: *mut st_generation_stats,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (session, options, out) =
            unsafe { (required(session, "session")?, generate_options(options)?, optional_output(text)) };
        let out_stats = match stats.is_null() {
            true => None,
            // SAFETY: the caller's contract.
            false => Some(unsafe { SizedOutput::new(stats, "stats") }?),
        };
        let mut session_lock = session.lock()?;
        let mut generation = session_lock.generate(options)?;
        let (mut whole, mut stopped) = (String::new(), false);
        for piece in generation.by_ref() {
            let piece = piece?;
            if let Some(on_piece) = on_piece {
                let call = |piece: &st_piece| {
                    // SAFETY: the caller's function and its own argument; the piece lives until it returns.
                    unsafe { on_piece(user_data, piece) }
                };
                stopped = with_piece(&piece, call) != 0;
            }
            whole += &piece.text;
            if stopped {
                break;
            }
        }
        let finish = match (stopped, generation.finish_reason()) {
            (true, _) | (_, None) => FinishReason::Cancelled,
            (false, Some(reason)) => reason,
        };
        let figures =
            st_generation_stats::new(generation.stats(), st_finish_reason::from(finish), whole.len());
        if let Some(out) = out {
            out.write(give_text(&whole)?);
        }
        if let Some(out) = out_stats {
            out.write(&figures);
        }
        Ok(())
    })
}

/// Shows a piece to `call` in C's terms.
fn with_piece<R>(piece: &Piece, call: impl FnOnce(&st_piece) -> R) -> R {
    let mut bytes = Vec::with_capacity(piece.text.len() + 1);
    bytes.extend_from_slice(piece.text.as_bytes());
    bytes.push(0);
    let top = piece.logprobs.as_ref().map_or(Vec::new(), top);
    call(&st_piece {
        text: bytes.as_ptr().cast(),
        text_length: piece.text.len(),
        has_token: i32::from(piece.token.is_some()),
        token: piece.token.unwrap_or_default(),
        has_logprob: i32::from(piece.logprobs.is_some()),
        logprob: piece.logprobs.as_ref().map_or(0.0, |l| l.logprob),
        top: if top.is_empty() { ptr::null() } else { top.as_ptr() },
        top_count: top.len(),
    })
}

fn top(logprobs: &TokenLogprobs) -> Vec<st_token_logprob> {
    logprobs.top.iter().map(|&(token, logprob)| st_token_logprob { token, logprob }).collect()
}
