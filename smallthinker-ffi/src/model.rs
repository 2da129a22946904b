//! Models: open, look at, free; text to tokens and back.

use std::ffi::c_char;

use smallthinker_core::Model;
use smallthinker_core::tokenizer::Specials;

use crate::guard::guard;
use crate::handle::{array, give, give_text, optional_output, output, path, required, take_back, text};
use crate::options::{model_options, st_model_options};
use crate::sized::SizedOutput;
use crate::stats::{st_plan, st_stats};
use crate::status::{Result, st_status};

/// A loaded model: immutable, shared by its sessions, safe to use from any number of threads at once.
pub struct st_model {
    pub(crate) inner: Model,
}

// What the header promises about threads.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<st_model>();
};

/// Opens the GGUF file `file` (any shard of a sharded one), NUL-terminated. `options` may be NULL for the
/// defaults.
///
/// On success *model is a new model; free it with st_model_free.
/// Errors: ST_NOT_FOUND, ST_IO, ST_MALFORMED, ST_UNSUPPORTED for the file; ST_BUDGET if the memory budget is
/// below what the model needs; ST_INVALID_ARGUMENT; ST_CANCELLED if the progress callback asked for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_model_open(
    file: *const c_char,
    options: *const st_model_options,
    model: *mut *mut st_model,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (out, file, options) =
            unsafe { (output(model, "model")?, path(file, "file")?, model_options(options)?) };
        let inner = Model::open_with(file, options)?;
        out.write(Box::into_raw(Box::new(st_model { inner })));
        Ok(())
    })
}

/// Frees a model; NULL is allowed. Its sessions may live on and keep what they need of it.
///
/// No other call may be using the handle `model` meanwhile or afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_model_free(model: *mut st_model) {
    guard(|| {
        if !model.is_null() {
            // SAFETY: from Box::into_raw in `st_model_open`; by the caller's contract not freed yet.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    });
}

/// Changes the memory budget of a model in use: experts are evicted at once if it is smaller, and room for more of
/// them is made if it is larger. Sessions keep what they have; no result changes. Waits for the token or the part of a
/// prompt that is being computed.
///
/// Thread-safe. Errors: ST_BUDGET, and nothing is changed, if `bytes` is below what the model needs or does not hold
/// what its sessions have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_model_set_memory_budget(model: *const st_model, bytes: u64) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let model = unsafe { required(model, "model")? };
        Ok(model.inner.set_memory_budget(bytes)?)
    })
}

/// Writes to *plan what the model takes of its memory budget when it is opened. Set plan->size first.
///
/// Thread-safe. Errors: ST_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_model_plan(model: *const st_model, plan: *mut st_plan) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (model, out) = unsafe { (required(model, "model")?, SizedOutput::new(plan, "plan")?) };
        out.write(&st_plan::from(model.inner.plan()));
        Ok(())
    })
}

/// As st_model_plan, for a file and options (NULL for the defaults), without loading its weights.
///
/// Thread-safe. Errors: as st_model_open; ST_BUDGET names the least budget.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_plan_file(
    file: *const c_char,
    options: *const st_model_options,
    plan: *mut st_plan,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (out, file, options) =
            unsafe { (SizedOutput::new(plan, "plan")?, path(file, "file")?, model_options(options)?) };
        out.write(&st_plan::from(&Model::plan_for(file, &options)?));
        Ok(())
    })
}

/// Writes the present state and counters to *stats. Set stats->size first.
///
/// Thread-safe. Errors: ST_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_model_stats(model: *const st_model, stats: *mut st_stats) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (model, out) = unsafe { (required(model, "model")?, SizedOutput::new(stats, "stats")?) };
        out.write(&st_stats::from(&model.inner.stats()));
        Ok(())
    })
}

/// Writes the number of tokens in the vocabulary, which is also the width of a row of logits.
///
/// Thread-safe. Errors: ST_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_model_vocab_size(model: *const st_model, size: *mut usize) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (model, out) = unsafe { (required(model, "model")?, output(size, "size")?) };
        out.write(model.inner.hparams().vocab);
        Ok(())
    })
}

/// Writes the positions that a session of this model has at most.
///
/// Thread-safe. Errors: ST_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_model_context_length(model: *const st_model, length: *mut usize) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (model, out) = unsafe { (required(model, "model")?, output(length, "length")?) };
        out.write(model.inner.context_length());
        Ok(())
    })
}

/// Converts `length` bytes of UTF-8 to tokens. Names of control tokens in the text, such as "<|im_start|>",
/// become those tokens only if `parse_special` is not 0: leave it 0 for text that you did not write.
///
/// On success *tokens is a new array of *count tokens, not NULL even for none; free it with st_tokens_free.
/// Thread-safe. Errors: ST_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_model_tokenize(
    model: *const st_model,
    text: *const c_char,
    length: usize,
    parse_special: i32,
    tokens: *mut *mut u32,
    count: *mut usize,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (model, text) = unsafe { (required(model, "model")?, self::text(text, length, "text")?) };
        let specials = if parse_special == 0 { Specials::Text } else { Specials::Parse };
        // SAFETY: the caller's contract.
        unsafe { give_array(tokens, count, || Ok(model.inner.tokenizer().encode(text, specials)?)) }
    })
}

/// Converts tokens to text; bytes that form no character become U+FFFD. Control tokens are left out if
/// `skip_special` is not 0, else they appear as their names.
///
/// On success *text is a new NUL-terminated string; free it with st_string_free. *length is its length
/// without that NUL; `length` may be NULL.
/// Thread-safe. Errors: ST_INVALID_ARGUMENT, also for a token outside the vocabulary.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_model_detokenize(
    model: *const st_model,
    tokens: *const u32,
    count: usize,
    skip_special: i32,
    text: *mut *mut c_char,
    length: *mut usize,
) -> st_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (model, tokens, out, out_length) = unsafe {
            (
                required(model, "model")?,
                array(tokens, count, "tokens")?,
                output(text, "text")?,
                optional_output(length),
            )
        };
        let decoded = model.inner.tokenizer().decode(tokens, skip_special != 0)?;
        out.write(give_text(&decoded)?);
        if let Some(length) = out_length {
            length.write(decoded.len());
        }
        Ok(())
    })
}

/// Frees a string that this library returned; NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_string_free(text: *mut c_char) {
    // SAFETY: the caller's contract.
    unsafe { take_back(text) }
}

/// Frees an array of tokens that this library returned; NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_tokens_free(tokens: *mut u32) {
    // SAFETY: the caller's contract.
    unsafe { take_back(tokens) }
}

/// Makes an array and hands it out with its length; the pointers are checked before it is made.
pub(crate) unsafe fn give_array<T: Copy>(
    items: *mut *mut T,
    count: *mut usize,
    make: impl FnOnce() -> Result<Vec<T>>,
) -> Result<()> {
    // SAFETY: the caller's contract.
    let (out, out_count) = unsafe { (output(items, "tokens")?, output(count, "count")?) };
    let made = make()?;
    out.write(give(&made)?);
    out_count.write(made.len());
    Ok(())
}
