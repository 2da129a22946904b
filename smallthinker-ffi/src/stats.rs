//! Figures handed to C: memory plan, state of a model, speed of a generation.

use std::ffi::c_char;
use std::time::Duration;

use smallthinker_core::{FinishReason, GenerationStats, ModelStats, Plan};

/// Why a generation ended.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum st_finish_reason {
    /// A stop token or a stop text.
    ST_FINISH_STOP = 1,
    /// `max_tokens` were generated.
    ST_FINISH_LENGTH = 2,
    /// The context is full.
    ST_FINISH_CONTEXT = 3,
    /// st_session_cancel, or the callback returned non-zero.
    ST_FINISH_CANCELLED = 4,
}

/// What a model takes of a memory budget, in bytes where nothing else is said. Set `size` before the call.
/// All experts stay in memory if `expert_slots` equals `experts`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct st_plan {
    /// sizeof(st_plan), set by the caller.
    pub size: usize,
    /// The budget that this plan is for.
    pub budget: u64,
    /// Dense weights, always in memory.
    pub resident: u64,
    /// Vocabulary and merges.
    pub tokenizer: u64,
    /// Buffers of one session.
    pub scratch: u64,
    /// KV cache of one session at the full context.
    pub kv_full_context: u64,
    /// KV cache that every session starts with.
    pub kv_first_page: u64,
    /// All experts of all layers.
    pub expert_bank: u64,
    /// One expert slot.
    pub expert_slot: u64,
    /// Slots that the budget holds; a number, not bytes.
    pub expert_slots: u64,
    /// Experts in the model; a number, not bytes.
    pub experts: u64,
    /// Least budget that can run the model.
    pub floor: u64,
    /// Weight bytes that one token touches; with a budget near it almost every expert is read for every
    /// token.
    pub per_token: u64,
    /// Budget at which nothing is ever read twice, with one session at the full context.
    pub everything: u64,
    /// What the sparse LM head holds besides the head; 0 with the full head.
    pub lm_head: u64,
    /// Memory that experts which were read are rearranged in; 0 if none needs to be.
    pub read_buffers: u64,
}

/// State of a model and its expert cache since it was opened. Set `size` before the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct st_stats {
    /// sizeof(st_stats), set by the caller.
    pub size: usize,
    /// Seconds that opening took.
    pub load_seconds: f64,
    /// Compute threads.
    pub threads: u64,
    /// Name of the kernel set in use, NUL-terminated.
    pub kernels: [c_char; 32],
    /// Bytes of the budget.
    pub budget: u64,
    /// Bytes of it in use.
    pub budget_used: u64,
    /// Slots of the expert cache.
    pub expert_slots: u64,
    /// Experts in memory now.
    pub expert_resident: u64,
    /// Uses that found the expert in memory.
    pub expert_hits: u64,
    /// Experts read from the file.
    pub expert_misses: u64,
    /// Experts evicted.
    pub expert_evictions: u64,
    /// Bytes read from the file.
    pub expert_bytes_read: u64,
    /// Seconds that computation waited for reads, or that its threads spent on them.
    pub expert_stall_seconds: f64,
    /// 1 if decode skips inactive neurons in the up projections of all layers, else 0.
    pub sparse_up: u32,
    /// 1 if decode skips inactive neurons in the down projections of all layers, else 0.
    pub sparse_down: u32,
    /// What the expert cache evicts, "lru" or "cyclic", NUL-terminated.
    pub cache_policy: [c_char; 32],
    /// What picks the rows of the sparse LM head, NUL-terminated: "file" (a predictor that the file brings), "sketch" (made
    /// while loading), or "" if the model was opened with the full head only.
    pub head_predictor: [c_char; 32],
    /// 1 if experts are read past the system's page cache, else 0.
    pub direct_reads: u32,
    /// 1 if experts are read that the next layer is expected to choose, else 0.
    pub look_ahead: u32,
    /// Seconds during which anything was being read and brought into its place.
    pub expert_read_seconds: f64,
    /// Experts requested before they were chosen. All the following are some of these.
    pub look_ahead_requested: u64,
    /// Chosen, and in memory by then.
    pub look_ahead_on_time: u64,
    /// Chosen, but not yet in memory.
    pub look_ahead_late: u64,
    /// Not chosen, but read.
    pub look_ahead_wasted: u64,
    /// Not chosen, and not read either.
    pub look_ahead_withdrawn: u64,
    /// Evicted before their layer's turn.
    pub look_ahead_evicted: u64,
}

/// What a generation was and how fast. Prefill is the evaluation of the prompt, decode everything after the
/// first token. Set `size` before the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct st_generation_stats {
    /// sizeof(st_generation_stats), set by the caller.
    pub size: usize,
    /// An st_finish_reason.
    pub finish_reason: i32,
    /// Compute threads.
    pub threads: u32,
    /// Name of the kernel set in use, NUL-terminated.
    pub kernels: [c_char; 32],
    /// Bytes of the generated text.
    pub text_length: u64,
    /// Tokens of the conversation before the generation.
    pub prompt_tokens: u64,
    /// Of these, evaluated by earlier calls.
    pub cached_tokens: u64,
    /// Tokens generated; a stop token is not counted.
    pub generated_tokens: u64,
    /// The seed that gives the same choices again.
    pub seed: u64,
    /// Seconds to evaluate the prompt.
    pub prefill_seconds: f64,
    /// Seconds from the first token to the last.
    pub decode_seconds: f64,
    /// Seconds from the call to the first token.
    pub first_token_seconds: f64,
    /// Prompt tokens evaluated per second; 0 if none were.
    pub prefill_tokens_per_second: f64,
    /// Tokens generated per second after the first; 0 if there was only one.
    pub decode_tokens_per_second: f64,
    /// Bytes of weights, and of keys and values, read from memory per decoded token.
    pub bytes_per_token: u64,
    /// The same per second of decode.
    pub bandwidth: f64,
    /// Uses that found the expert in memory, by all sessions of the model meanwhile.
    pub expert_hits: u64,
    /// Experts read from the file, for all sessions of the model meanwhile.
    pub expert_misses: u64,
    /// Bytes of them.
    pub expert_bytes_read: u64,
    /// Seconds that computation waited for them, or that its threads spent on them.
    pub expert_stall_seconds: f64,
    /// Rows of the LM head computed per decoded token; the size of the vocabulary with the full head.
    pub head_rows_per_token: f64,
    /// Seconds during which anything was being read and brought into its place.
    pub expert_read_seconds: f64,
    /// Experts requested before they were chosen, for all sessions of the model meanwhile. All the following are some of
    /// these.
    pub look_ahead_requested: u64,
    /// Chosen, and in memory by then.
    pub look_ahead_on_time: u64,
    /// Chosen, but not yet in memory.
    pub look_ahead_late: u64,
    /// Not chosen, but read.
    pub look_ahead_wasted: u64,
    /// Not chosen, and not read either.
    pub look_ahead_withdrawn: u64,
    /// Evicted before their layer's turn.
    pub look_ahead_evicted: u64,
    /// Of `expert_hits`, those during decode.
    pub decode_expert_hits: u64,
    /// Of `expert_misses`, those during decode.
    pub decode_expert_misses: u64,
    /// Of `expert_bytes_read`, those during decode.
    pub decode_expert_bytes_read: u64,
    /// Of `expert_stall_seconds`, those during decode.
    pub decode_expert_stall_seconds: f64,
}

// No padding: the whole struct is copied to the caller byte by byte.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<st_plan>() == 16 * 8);
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<st_stats>() == 19 * 8 + 4 * 4 + 3 * 32);
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<st_generation_stats>() == 29 * 8 + 2 * 4 + 32);

impl From<&Plan> for st_plan {
    fn from(plan: &Plan) -> st_plan {
        st_plan {
            size: size_of::<st_plan>(),
            budget: plan.budget,
            resident: plan.resident,
            tokenizer: plan.tokenizer,
            scratch: plan.scratch,
            kv_full_context: plan.kv_full_context,
            kv_first_page: plan.kv_first_page,
            expert_bank: plan.expert_bank,
            expert_slot: plan.expert_slot,
            expert_slots: plan.expert_slots,
            experts: plan.experts,
            floor: plan.floor,
            per_token: plan.per_token,
            everything: plan.everything,
            lm_head: plan.lm_head,
            read_buffers: plan.read_buffers,
        }
    }
}

impl From<&ModelStats> for st_stats {
    fn from(stats: &ModelStats) -> st_stats {
        let ahead = &stats.experts.look_ahead;
        st_stats {
            size: size_of::<st_stats>(),
            load_seconds: stats.load_time.as_secs_f64(),
            threads: stats.threads as u64,
            kernels: name(stats.kernels),
            budget: stats.budget,
            budget_used: stats.budget_used,
            expert_slots: stats.experts.slots,
            expert_resident: stats.experts.resident,
            expert_hits: stats.experts.hits,
            expert_misses: stats.experts.misses,
            expert_evictions: stats.experts.evictions,
            expert_bytes_read: stats.experts.bytes_read,
            expert_stall_seconds: stats.experts.stall.as_secs_f64(),
            sparse_up: u32::from(stats.sparse_up),
            sparse_down: u32::from(stats.sparse_down),
            cache_policy: name(stats.cache_policy.name()),
            head_predictor: name(stats.head_predictor.map_or("", |p| p.name())),
            direct_reads: u32::from(stats.direct_reads),
            look_ahead: u32::from(stats.look_ahead),
            expert_read_seconds: stats.experts.reading.as_secs_f64(),
            look_ahead_requested: ahead.requested,
            look_ahead_on_time: ahead.on_time,
            look_ahead_late: ahead.late,
            look_ahead_wasted: ahead.wasted,
            look_ahead_withdrawn: ahead.withdrawn,
            look_ahead_evicted: ahead.evicted,
        }
    }
}

impl st_generation_stats {
    pub(crate) fn new(stats: &GenerationStats, finish: st_finish_reason, text_length: usize) -> Self {
        let seconds = |time: Duration| time.as_secs_f64();
        let (ahead, decode) = (&stats.experts.look_ahead, &stats.decode_experts);
        st_generation_stats {
            size: size_of::<st_generation_stats>(),
            finish_reason: finish as i32,
            threads: u32::try_from(stats.threads).unwrap_or(u32::MAX),
            kernels: name(stats.kernels),
            text_length: text_length as u64,
            prompt_tokens: stats.prompt_tokens as u64,
            cached_tokens: stats.cached_tokens as u64,
            generated_tokens: stats.generated_tokens as u64,
            seed: stats.seed,
            prefill_seconds: seconds(stats.prefill_time),
            decode_seconds: seconds(stats.decode_time),
            first_token_seconds: seconds(stats.time_to_first_token),
            prefill_tokens_per_second: stats.prefill_tokens_per_second(),
            decode_tokens_per_second: stats.decode_tokens_per_second(),
            bytes_per_token: stats.bytes_per_token(),
            bandwidth: stats.bandwidth(),
            expert_hits: stats.experts.hits,
            expert_misses: stats.experts.misses,
            expert_bytes_read: stats.experts.bytes_read,
            expert_stall_seconds: seconds(stats.experts.stall),
            head_rows_per_token: stats.head_rows_per_token(),
            expert_read_seconds: seconds(stats.experts.reading),
            look_ahead_requested: ahead.requested,
            look_ahead_on_time: ahead.on_time,
            look_ahead_late: ahead.late,
            look_ahead_wasted: ahead.wasted,
            look_ahead_withdrawn: ahead.withdrawn,
            look_ahead_evicted: ahead.evicted,
            decode_expert_hits: decode.hits,
            decode_expert_misses: decode.misses,
            decode_expert_bytes_read: decode.bytes_read,
            decode_expert_stall_seconds: seconds(decode.stall),
        }
    }
}

impl From<FinishReason> for st_finish_reason {
    fn from(reason: FinishReason) -> st_finish_reason {
        match reason {
            FinishReason::Stop => st_finish_reason::ST_FINISH_STOP,
            FinishReason::Length => st_finish_reason::ST_FINISH_LENGTH,
            FinishReason::Context => st_finish_reason::ST_FINISH_CONTEXT,
            FinishReason::Cancelled => st_finish_reason::ST_FINISH_CANCELLED,
            // A reason that the core may add before this crate has a number for it.
            _ => st_finish_reason::ST_FINISH_STOP,
        }
    }
}

/// At most 31 bytes of `text`, then NUL.
fn name(text: &str) -> [c_char; 32] {
    let mut out = [0; 32];
    for (to, from) in out[..31].iter_mut().zip(text.bytes()) {
        *to = from.cast_signed() as c_char;
    }
    out
}
