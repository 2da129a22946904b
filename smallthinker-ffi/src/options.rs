//! What a caller can choose: options of opening and generating, and their translation for the core.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use smallthinker_core::{CancelFlag, Gating, GenerateOptions, KvType, ModelOptions};

use crate::guard::guard;
use crate::handle::{array, c_text};
use crate::sized::{Growing, init, read_sized};
use crate::status::{Failure, Result, st_status};

/// Called while a model is loaded, on the thread that called st_model_open. `done` of `total` bytes are
/// loaded. Return 0 to go on; anything else cancels the load. Must return normally: no longjmp, no C++
/// exception.
pub type st_progress_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, done: u64, total: u64) -> c_int>;

/// Element type of KV caches, for `kv_type` of st_model_options.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum st_kv_type {
    /// Half precision, the default.
    ST_KV_F16 = 0,
    /// Single precision.
    ST_KV_F32 = 1,
    /// 8-bit codes with a scale for 32 of them: about half the memory of half precision, a little less exact.
    ST_KV_Q8_0 = 2,
    /// 4-bit codes, of keys and values that were rotated: about a quarter of the memory of half precision, less exact.
    ST_KV_Q4_0 = 3,
}

/// How router logits become weights, for `gating` of st_model_options.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum st_gating {
    /// What the file says, the default.
    ST_GATING_FILE = 0,
    /// Softmax of the chosen experts' logits.
    ST_GATING_SOFTMAX = 1,
    /// Sigmoid of the chosen experts' logits.
    ST_GATING_SIGMOID = 2,
}

/// Whether to read experts before they are chosen, for `look_ahead` of st_model_options.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum st_look_ahead {
    /// As this version finds best, the default: on.
    ST_LOOK_AHEAD_DEFAULT = 0,
    /// Yes, under a budget that does not hold all experts.
    ST_LOOK_AHEAD_ON = 1,
    /// No.
    ST_LOOK_AHEAD_OFF = 2,
}

/// How to open a model. Fill it with st_model_options_init, then change what you need.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_model_options {
    /// sizeof(st_model_options), set by st_model_options_init.
    pub size: usize,
    /// Bytes that weights, KV caches, buffers and tokenizer may take together; 0 = what the model needs or
    /// the machine (and its cgroup) has free, whichever is less.
    pub memory_budget: u64,
    /// Compute threads, 1 to 1024; 0 = one per physical core available.
    pub threads: usize,
    /// Positions of a session at most; 0 = the model's own context length, which is also the maximum.
    pub context_length: usize,
    /// Positions evaluated at once during prefill, 1 to 8192; 0 = 512. Does not change any result.
    pub chunk: usize,
    /// An st_kv_type.
    pub kv_type: i32,
    /// An st_gating.
    pub gating: i32,
    /// Name of a kernel set, such as "scalar", NUL-terminated; NULL = the best for this CPU.
    pub kernels: *const c_char,
    /// First argument of `progress`.
    pub progress_user_data: *mut c_void,
    /// Called while loading; NULL = not called.
    pub progress: st_progress_callback,
    /// What the expert cache evicts under a budget that does not hold all experts, NUL-terminated: "lru" (least
    /// recently used) or "cyclic" (next use expected last); NULL = "cyclic". Does not change any result.
    pub cache_policy: *const c_char,
    /// How logits are made, NUL-terminated: "full", or "sparse", which computes only those that may be the largest (others
    /// are minus infinity), from the predictor that the file brings or a sketch made while loading; NULL = "full".
    pub lm_head: *const c_char,
    /// An st_look_ahead. Does not change any result.
    pub look_ahead: i32,
    /// Not 0: under a budget that does not hold all experts, read them through the system's page cache nevertheless. It
    /// may keep what the budget has no room for, in memory that others could use. 0, the default: past it, where the
    /// file system allows that. Does not change any result.
    pub buffered_reads: i32,
}

/// A number added to the logit of a token before sampling.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct st_logit_bias {
    /// Token id.
    pub token: u32,
    /// Finite, or minus infinity to forbid the token.
    pub bias: f32,
}

/// What to generate. Fill it with st_generate_options_init, then change what you need.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_generate_options {
    /// sizeof(st_generate_options), set by st_generate_options_init.
    pub size: usize,
    /// Tokens at most; SIZE_MAX, the default, goes on to a stop or the end of the context.
    pub max_tokens: usize,
    /// 0, the default, takes the most likely token each time; else logits are divided by it. Finite.
    pub temperature: f32,
    /// Keep the most likely tokens up to this sum of probabilities: above 0, at most 1. Default 1, all.
    pub top_p: f32,
    /// Keep tokens at least this share as likely as the most likely one: 0 to 1. Default 0, all.
    pub min_p: f32,
    /// Above 1 discourages tokens that occurred, below 1 encourages them. Above 0, finite. Default 1,
    /// neither.
    pub repetition_penalty: f32,
    /// Keep this many most likely tokens. Default 0, all.
    pub top_k: usize,
    /// Latest tokens that the repetition penalty looks at; 0 = all of the conversation. Default 64.
    pub repetition_window: usize,
    /// Same seed, same choices. Looked at only if `has_seed` is not 0.
    pub seed: u64,
    /// 0, the default, draws a seed from the system; st_generation_stats tells which.
    pub has_seed: i32,
    /// Log probabilities: -1, the default, none; 0 the chosen token's; n also those of the n most likely
    /// ones.
    pub logprobs: i32,
    /// Texts that end the generation and are not part of it: `stop_count` strings, NUL-terminated UTF-8.
    pub stop: *const *const c_char,
    /// Length of `stop`. Default 0.
    pub stop_count: usize,
    /// Tokens that end the generation, besides those the model file names.
    pub stop_tokens: *const u32,
    /// Length of `stop_tokens`. Default 0.
    pub stop_token_count: usize,
    /// Added to logits before sampling.
    pub logit_bias: *const st_logit_bias,
    /// Length of `logit_bias`. Default 0.
    pub logit_bias_count: usize,
    /// "full" or "sparse", NUL-terminated; NULL = as the model was opened. "sparse" needs a model opened with it. Log
    /// probabilities are always from the full head.
    pub lm_head: *const c_char,
}

// Padding would let a later field appear inside the size of today's struct, where old programs have garbage.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<st_model_options>() == 10 * 8 + 4 * 4);
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<st_generate_options>() == 12 * 8 + 6 * 4);

// SAFETY: repr(C), without padding (asserted above), numbers and pointers only.
unsafe impl Growing for st_model_options {
    fn defaults() -> Self {
        st_model_options {
            size: size_of::<Self>(),
            memory_budget: 0,
            threads: 0,
            context_length: 0,
            chunk: 0,
            kv_type: st_kv_type::ST_KV_F16 as i32,
            gating: st_gating::ST_GATING_FILE as i32,
            kernels: ptr::null(),
            progress_user_data: ptr::null_mut(),
            progress: None,
            cache_policy: ptr::null(),
            lm_head: ptr::null(),
            look_ahead: st_look_ahead::ST_LOOK_AHEAD_DEFAULT as i32,
            buffered_reads: 0,
        }
    }
}

// SAFETY: as above.
unsafe impl Growing for st_generate_options {
    fn defaults() -> Self {
        st_generate_options {
            size: size_of::<Self>(),
            max_tokens: usize::MAX,
            temperature: 0.0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            top_k: 0,
            repetition_window: 64,
            seed: 0,
            has_seed: 0,
            logprobs: -1,
            stop: ptr::null(),
            stop_count: 0,
            stop_tokens: ptr::null(),
            stop_token_count: 0,
            logit_bias: ptr::null(),
            logit_bias_count: 0,
            lm_head: ptr::null(),
        }
    }
}

/// Sets every field to its default. `size` is sizeof(st_model_options).
///
/// Errors: ST_INVALID_ARGUMENT if `options` is NULL or `size` can't be right.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_model_options_init(options: *mut st_model_options, size: usize) -> st_status {
    // SAFETY: the caller's contract.
    guard(|| unsafe { init(options, size) })
}

/// Sets every field to its default. `size` is sizeof(st_generate_options).
///
/// Errors: ST_INVALID_ARGUMENT if `options` is NULL or `size` can't be right.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn st_generate_options_init(
    options: *mut st_generate_options,
    size: usize,
) -> st_status {
    // SAFETY: the caller's contract.
    guard(|| unsafe { init(options, size) })
}

/// The caller's pointer, which [`ModelOptions::progress`] wants to be `Send`.
struct UserData(*mut c_void);
// SAFETY: the core calls progress on the thread that opens the model, so the pointer stays there.
unsafe impl Send for UserData {}

impl UserData {
    /// As a method, so that a closure captures the whole and not the pointer in it.
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// The core's options. Errors name the field.
pub(crate) unsafe fn model_options(pointer: *const st_model_options) -> Result<ModelOptions> {
    // SAFETY: the caller's contract.
    let from = unsafe { read_sized(pointer, "options") }?;
    let some = |n: usize| (n != 0).then_some(n);
    let mut options = ModelOptions::default();
    options.memory_budget = (from.memory_budget != 0).then_some(from.memory_budget);
    options.threads = some(from.threads);
    options.context_length = some(from.context_length);
    options.chunk = some(from.chunk);
    options.kv_type = match from.kv_type {
        0 => KvType::F16,
        1 => KvType::F32,
        2 => KvType::Q8_0,
        3 => KvType::Q4_0,
        n => return Err(Failure::argument("options.kv_type", n, "an st_kv_type, 0 to 3")),
    };
    options.gating = match from.gating {
        0 => None,
        1 => Some(Gating::Softmax),
        2 => Some(Gating::Sigmoid),
        n => return Err(Failure::argument("options.gating", n, "an st_gating, 0 to 2")),
    };
    if !from.kernels.is_null() {
        // SAFETY: not NULL, so by the caller's contract NUL-terminated.
        options.kernels = Some(unsafe { c_text(from.kernels, "options.kernels") }?.to_owned());
    }
    if !from.cache_policy.is_null() {
        // SAFETY: as above.
        options.cache_policy = unsafe { c_text(from.cache_policy, "options.cache_policy") }?.parse()?;
    }
    if !from.lm_head.is_null() {
        // SAFETY: as above.
        options.lm_head = unsafe { c_text(from.lm_head, "options.lm_head") }?.parse()?;
    }
    options.look_ahead = match from.look_ahead {
        0 => None,
        1 => Some(true),
        2 => Some(false),
        n => return Err(Failure::argument("options.look_ahead", n, "an st_look_ahead, 0 to 2")),
    };
    options.buffered_reads = from.buffered_reads != 0;
    if let Some(progress) = from.progress {
        let (user_data, cancel) = (UserData(from.progress_user_data), CancelFlag::new());
        options.cancel = cancel.clone();
        options.progress = Some(Box::new(move |done, total| {
            // SAFETY: the caller's function and its own argument, on the caller's thread.
            if unsafe { progress(user_data.get(), done, total) } != 0 {
                cancel.cancel();
            }
        }));
    }
    Ok(options)
}

/// The core's options. Errors name the field.
pub(crate) unsafe fn generate_options(pointer: *const st_generate_options) -> Result<GenerateOptions> {
    // SAFETY: the caller's contract.
    let from = unsafe { read_sized(pointer, "options") }?;
    // SAFETY: the caller's contract for each array and its count.
    let (stop, stop_tokens, logit_bias) = unsafe {
        (
            array(from.stop, from.stop_count, "options.stop")?,
            array(from.stop_tokens, from.stop_token_count, "options.stop_tokens")?,
            array(from.logit_bias, from.logit_bias_count, "options.logit_bias")?,
        )
    };
    let mut options = GenerateOptions::default();
    options.max_tokens = (from.max_tokens != usize::MAX).then_some(from.max_tokens);
    options.logprobs = match from.logprobs {
        -1 => None,
        n @ 0.. => Some(n as usize),
        n => return Err(Failure::argument("options.logprobs", n, "-1 (none) or more")),
    };
    for (i, &text) in stop.iter().enumerate() {
        // SAFETY: the caller's contract; NULL is refused.
        options.stop.push(unsafe { c_text(text, &format!("options.stop[{i}]")) }?.to_owned());
    }
    if !from.lm_head.is_null() {
        // SAFETY: not NULL, so by the caller's contract NUL-terminated.
        options.lm_head = Some(unsafe { c_text(from.lm_head, "options.lm_head") }?.parse()?);
    }
    options.stop_tokens = stop_tokens.to_vec();
    let sampling = &mut options.sampling;
    sampling.temperature = from.temperature;
    sampling.top_k = from.top_k;
    sampling.top_p = from.top_p;
    sampling.min_p = from.min_p;
    sampling.repetition_penalty = from.repetition_penalty;
    sampling.repetition_window = from.repetition_window;
    sampling.logit_bias = logit_bias.iter().map(|b| (b.token, b.bias)).collect();
    sampling.seed = (from.has_seed != 0).then_some(from.seed);
    Ok(options)
}
