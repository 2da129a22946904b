/*
 * smallthinker: runs SmallThinker language models from GGUF files on the CPU.
 *
 * Generated from the Rust source by cbindgen; to change it, change that and run
 *     ST_UPDATE_HEADER=1 cargo test -p smallthinker-ffi --test header
 *
 * Rules of all functions:
 *
 * - A function that can fail returns an st_status; what went wrong is in st_last_error_message(), per thread.
 *   Results go through pointers, and are written on success only.
 * - Pointers must be NULL or valid: pointing to what the signature says, as long as is said, and not changed
 *   by anyone else during the call. NULL where something is needed gives ST_INVALID_ARGUMENT and a message
 *   that names the argument. An array or text of length 0 may be NULL. Every free function allows NULL.
 * - Text that is passed in is UTF-8 with a length in bytes, or NUL-terminated where no length is asked for;
 *   invalid UTF-8 gives ST_INVALID_ARGUMENT. File names are NUL-terminated bytes of the system (UTF-8 on
 *   Windows).
 * - What the library allocates is freed by the function that the documentation names, never by free().
 * - `const` arguments are not changed. Handles may move between threads. A model may be used by any number of
 *   threads at once, a session by one at a time; freeing needs that nobody else uses the handle.
 * - Callbacks get their user data first, run on the thread that made the call, and return non-zero to stop
 *   it.
 * - Structs that start with `size` may grow in later versions: initialise options by their init function, set
 *   `size` of structs that are filled for you. Then programs keep working with a newer library.
 */

#ifndef SMALLTHINKER_H
#define SMALLTHINKER_H

#include <stddef.h>
#include <stdint.h>

/** Version of this header. */
#define ST_VERSION "0.1.0"
#define ST_VERSION_MAJOR 0
#define ST_VERSION_MINOR 1
#define ST_VERSION_PATCH 0

/// Version of the binary interface. Functions may be added and structs with a `size` may grow under the same
/// number; anything that breaks a compiled program raises it.
#define ST_ABI_VERSION 1

/// What a call came to. The numbers never change; 11 to 99 are kept for later versions, so treat an unknown
/// number as a failure.
enum st_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
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
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum st_status st_status;
#else
typedef int32_t st_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/// Element type of KV caches, for `kv_type` of st_model_options.
enum st_kv_type
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /// Half precision, the default.
    ST_KV_F16 = 0,
    /// Single precision.
    ST_KV_F32 = 1,
    /// 8-bit codes with a scale for 32 of them: about half the memory of half precision, a little less exact.
    ST_KV_Q8_0 = 2,
    /// 4-bit codes, of keys and values that were rotated: about a quarter of the memory of half precision, less exact.
    ST_KV_Q4_0 = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum st_kv_type st_kv_type;
#else
typedef int32_t st_kv_type;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/// How router logits become weights, for `gating` of st_model_options.
enum st_gating
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /// What the file says, the default.
    ST_GATING_FILE = 0,
    /// Softmax of the chosen experts' logits.
    ST_GATING_SOFTMAX = 1,
    /// Sigmoid of the chosen experts' logits.
    ST_GATING_SIGMOID = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum st_gating st_gating;
#else
typedef int32_t st_gating;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/// Whether to read experts before they are chosen, for `look_ahead` of st_model_options.
enum st_look_ahead
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /// As this version finds best, the default: on.
    ST_LOOK_AHEAD_DEFAULT = 0,
    /// Yes, under a budget that does not hold all experts.
    ST_LOOK_AHEAD_ON = 1,
    /// No.
    ST_LOOK_AHEAD_OFF = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum st_look_ahead st_look_ahead;
#else
typedef int32_t st_look_ahead;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/// Why a generation ended.
enum st_finish_reason
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /// A stop token or a stop text.
    ST_FINISH_STOP = 1,
    /// `max_tokens` were generated.
    ST_FINISH_LENGTH = 2,
    /// The context is full.
    ST_FINISH_CONTEXT = 3,
    /// st_session_cancel, or the callback returned non-zero.
    ST_FINISH_CANCELLED = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum st_finish_reason st_finish_reason;
#else
typedef int32_t st_finish_reason;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/// A loaded model: immutable, shared by its sessions, safe to use from any number of threads at once.
typedef struct st_model st_model;

/// One conversation with a model. Used by one thread at a time, any of them: a call while another is in
/// progress returns ST_BUSY. Only st_session_cancel may be called at any time.
typedef struct st_session st_session;

/// Called while a model is loaded, on the thread that called st_model_open. `done` of `total` bytes are
/// loaded. Return 0 to go on; anything else cancels the load. Must return normally: no longjmp, no C++
/// exception.
typedef int (*st_progress_callback)(void *user_data, uint64_t done, uint64_t total);

/// How to open a model. Fill it with st_model_options_init, then change what you need.
typedef struct st_model_options {
    /// sizeof(st_model_options), set by st_model_options_init.
    size_t size;
    /// Bytes that weights, KV caches, buffers and tokenizer may take together; 0 = what the model needs or
    /// the machine (and its cgroup) has free, whichever is less.
    uint64_t memory_budget;
    /// Compute threads, 1 to 1024; 0 = one per physical core available.
    size_t threads;
    /// Positions of a session at most; 0 = the model's own context length, which is also the maximum.
    size_t context_length;
    /// Positions evaluated at once during prefill, 1 to 8192; 0 = 512. Does not change any result.
    size_t chunk;
    /// An st_kv_type.
    int32_t kv_type;
    /// An st_gating.
    int32_t gating;
    /// Name of a kernel set, such as "scalar", NUL-terminated; NULL = the best for this CPU.
    const char *kernels;
    /// First argument of `progress`.
    void *progress_user_data;
    /// Called while loading; NULL = not called.
    st_progress_callback progress;
    /// What the expert cache evicts under a budget that does not hold all experts, NUL-terminated: "lru" (least
    /// recently used) or "cyclic" (next use expected last); NULL = "cyclic". Does not change any result.
    const char *cache_policy;
    /// How logits are made, NUL-terminated: "full", or "sparse", which computes only those that may be the largest (others
    /// are minus infinity), from the predictor that the file brings or a sketch made while loading; NULL = "full".
    const char *lm_head;
    /// An st_look_ahead. Does not change any result.
    int32_t look_ahead;
    /// Not 0: under a budget that does not hold all experts, read them through the system's page cache nevertheless. It
    /// may keep what the budget has no room for, in memory that others could use. 0, the default: past it, where the
    /// file system allows that. Does not change any result.
    int32_t buffered_reads;
} st_model_options;

/// A number added to the logit of a token before sampling.
typedef struct st_logit_bias {
    /// Token id.
    uint32_t token;
    /// Finite, or minus infinity to forbid the token.
    float bias;
} st_logit_bias;

/// What to generate. Fill it with st_generate_options_init, then change what you need.
typedef struct st_generate_options {
    /// sizeof(st_generate_options), set by st_generate_options_init.
    size_t size;
    /// Tokens at most; SIZE_MAX, the default, goes on to a stop or the end of the context.
    size_t max_tokens;
    /// 0, the default, takes the most likely token each time; else logits are divided by it. Finite.
    float temperature;
    /// Keep the most likely tokens up to this sum of probabilities: above 0, at most 1. Default 1, all.
    float top_p;
    /// Keep tokens at least this share as likely as the most likely one: 0 to 1. Default 0, all.
    float min_p;
    /// Above 1 discourages tokens that occurred, below 1 encourages them. Above 0, finite. Default 1,
    /// neither.
    float repetition_penalty;
    /// Keep this many most likely tokens. Default 0, all.
    size_t top_k;
    /// Latest tokens that the repetition penalty looks at; 0 = all of the conversation. Default 64.
    size_t repetition_window;
    /// Same seed, same choices. Looked at only if `has_seed` is not 0.
    uint64_t seed;
    /// 0, the default, draws a seed from the system; st_generation_stats tells which.
    int32_t has_seed;
    /// Log probabilities: -1, the default, none; 0 the chosen token's; n also those of the n most likely
    /// ones.
    int32_t logprobs;
    /// Texts that end the generation and are not part of it: `stop_count` strings, NUL-terminated UTF-8.
    const char *const *stop;
    /// Length of `stop`. Default 0.
    size_t stop_count;
    /// Tokens that end the generation, besides those the model file names.
    const uint32_t *stop_tokens;
    /// Length of `stop_tokens`. Default 0.
    size_t stop_token_count;
    /// Added to logits before sampling.
    const struct st_logit_bias *logit_bias;
    /// Length of `logit_bias`. Default 0.
    size_t logit_bias_count;
    /// "full" or "sparse", NUL-terminated; NULL = as the model was opened. "sparse" needs a model opened with it. Log
    /// probabilities are always from the full head.
    const char *lm_head;
} st_generate_options;

/// What a model takes of a memory budget, in bytes where nothing else is said. Set `size` before the call.
/// All experts stay in memory if `expert_slots` equals `experts`.
typedef struct st_plan {
    /// sizeof(st_plan), set by the caller.
    size_t size;
    /// The budget that this plan is for.
    uint64_t budget;
    /// Dense weights, always in memory.
    uint64_t resident;
    /// Vocabulary and merges.
    uint64_t tokenizer;
    /// Buffers of one session.
    uint64_t scratch;
    /// KV cache of one session at the full context.
    uint64_t kv_full_context;
    /// KV cache that every session starts with.
    uint64_t kv_first_page;
    /// All experts of all layers.
    uint64_t expert_bank;
    /// One expert slot.
    uint64_t expert_slot;
    /// Slots that the budget holds; a number, not bytes.
    uint64_t expert_slots;
    /// Experts in the model; a number, not bytes.
    uint64_t experts;
    /// Least budget that can run the model.
    uint64_t floor;
    /// Weight bytes that one token touches; with a budget near it almost every expert is read for every
    /// token.
    uint64_t per_token;
    /// Budget at which nothing is ever read twice, with one session at the full context.
    uint64_t everything;
    /// What the sparse LM head holds besides the head; 0 with the full head.
    uint64_t lm_head;
    /// Memory that experts which were read are rearranged in; 0 if none needs to be.
    uint64_t read_buffers;
} st_plan;

/// State of a model and its expert cache since it was opened. Set `size` before the call.
typedef struct st_stats {
    /// sizeof(st_stats), set by the caller.
    size_t size;
    /// Seconds that opening took.
    double load_seconds;
    /// Compute threads.
    uint64_t threads;
    /// Name of the kernel set in use, NUL-terminated.
    char kernels[32];
    /// Bytes of the budget.
    uint64_t budget;
    /// Bytes of it in use.
    uint64_t budget_used;
    /// Slots of the expert cache.
    uint64_t expert_slots;
    /// Experts in memory now.
    uint64_t expert_resident;
    /// Uses that found the expert in memory.
    uint64_t expert_hits;
    /// Experts read from the file.
    uint64_t expert_misses;
    /// Experts evicted.
    uint64_t expert_evictions;
    /// Bytes read from the file.
    uint64_t expert_bytes_read;
    /// Seconds that computation waited for reads, or that its threads spent on them.
    double expert_stall_seconds;
    /// 1 if decode skips inactive neurons in the up projections of all layers, else 0.
    uint32_t sparse_up;
    /// 1 if decode skips inactive neurons in the down projections of all layers, else 0.
    uint32_t sparse_down;
    /// What the expert cache evicts, "lru" or "cyclic", NUL-terminated.
    char cache_policy[32];
    /// What picks the rows of the sparse LM head, NUL-terminated: "file" (a predictor that the file brings), "sketch" (made
    /// while loading), or "" if the model was opened with the full head only.
    char head_predictor[32];
    /// 1 if experts are read past the system's page cache, else 0.
    uint32_t direct_reads;
    /// 1 if experts are read that the next layer is expected to choose, else 0.
    uint32_t look_ahead;
    /// Seconds during which anything was being read and brought into its place.
    double expert_read_seconds;
    /// Experts requested before they were chosen. All the following are some of these.
    uint64_t look_ahead_requested;
    /// Chosen, and in memory by then.
    uint64_t look_ahead_on_time;
    /// Chosen, but not yet in memory.
    uint64_t look_ahead_late;
    /// Not chosen, but read.
    uint64_t look_ahead_wasted;
    /// Not chosen, and not read either.
    uint64_t look_ahead_withdrawn;
    /// Evicted before their layer's turn.
    uint64_t look_ahead_evicted;
} st_stats;

/// One message of a chat.
typedef struct st_message {
    /// "system", "user", "assistant" or what else the model's template knows; NUL-terminated UTF-8.
    const char *role;
    /// UTF-8; never read as control tokens.
    const char *content;
    /// Bytes of `content`.
    size_t content_length;
} st_message;

/// A token and its log probability (natural logarithm).
typedef struct st_token_logprob {
    /// Token id.
    uint32_t token;
    /// At most 0; minus infinity for a token that can't occur.
    float logprob;
} st_token_logprob;

/// One step of a generation. The callback may use it, and what it points to, until it returns.
typedef struct st_piece {
    /// Text that became certain: whole UTF-8 characters, no part of a stop text. May be empty; a NUL follows
    /// it.
    const char *text;
    /// Bytes of `text`, without that NUL.
    size_t text_length;
    /// 1 if a token belongs to this step; 0 if this is text that was held back to the end.
    int32_t has_token;
    /// The token, if there is one.
    uint32_t token;
    /// 1 if log probabilities were asked for and this step has a token; else 0, and they are zero.
    int32_t has_logprob;
    /// Log probability of the token, by the model alone: without temperature, penalty and bias.
    float logprob;
    /// The most likely tokens, most likely first.
    const struct st_token_logprob *top;
    /// Length of `top`.
    size_t top_count;
} st_piece;

/// Called for each step of a generation, on the thread that called st_session_generate. Return 0 to go on;
/// anything else ends the generation with ST_FINISH_CANCELLED. Must return normally: no longjmp, no C++
/// exception. The session is in use meanwhile: of its functions only st_session_cancel works (others return
/// ST_BUSY).
typedef int (*st_piece_callback)(void *user_data, const struct st_piece *piece);

/// What a generation was and how fast. Prefill is the evaluation of the prompt, decode everything after the
/// first token. Set `size` before the call.
typedef struct st_generation_stats {
    /// sizeof(st_generation_stats), set by the caller.
    size_t size;
    /// An st_finish_reason.
    int32_t finish_reason;
    /// Compute threads.
    uint32_t threads;
    /// Name of the kernel set in use, NUL-terminated.
    char kernels[32];
    /// Bytes of the generated text.
    uint64_t text_length;
    /// Tokens of the conversation before the generation.
    uint64_t prompt_tokens;
    /// Of these, evaluated by earlier calls.
    uint64_t cached_tokens;
    /// Tokens generated; a stop token is not counted.
    uint64_t generated_tokens;
    /// The seed that gives the same choices again.
    uint64_t seed;
    /// Seconds to evaluate the prompt.
    double prefill_seconds;
    /// Seconds from the first token to the last.
    double decode_seconds;
    /// Seconds from the call to the first token.
    double first_token_seconds;
    /// Prompt tokens evaluated per second; 0 if none were.
    double prefill_tokens_per_second;
    /// Tokens generated per second after the first; 0 if there was only one.
    double decode_tokens_per_second;
    /// Bytes of weights, and of keys and values, read from memory per decoded token.
    uint64_t bytes_per_token;
    /// The same per second of decode.
    double bandwidth;
    /// Uses that found the expert in memory, by all sessions of the model meanwhile.
    uint64_t expert_hits;
    /// Experts read from the file, for all sessions of the model meanwhile.
    uint64_t expert_misses;
    /// Bytes of them.
    uint64_t expert_bytes_read;
    /// Seconds that computation waited for them, or that its threads spent on them.
    double expert_stall_seconds;
    /// Rows of the LM head computed per decoded token; the size of the vocabulary with the full head.
    double head_rows_per_token;
    /// Seconds during which anything was being read and brought into its place.
    double expert_read_seconds;
    /// Experts requested before they were chosen, for all sessions of the model meanwhile. All the following are some of
    /// these.
    uint64_t look_ahead_requested;
    /// Chosen, and in memory by then.
    uint64_t look_ahead_on_time;
    /// Chosen, but not yet in memory.
    uint64_t look_ahead_late;
    /// Not chosen, but read.
    uint64_t look_ahead_wasted;
    /// Not chosen, and not read either.
    uint64_t look_ahead_withdrawn;
    /// Evicted before their layer's turn.
    uint64_t look_ahead_evicted;
    /// Of `expert_hits`, those during decode.
    uint64_t decode_expert_hits;
    /// Of `expert_misses`, those during decode.
    uint64_t decode_expert_misses;
    /// Of `expert_bytes_read`, those during decode.
    uint64_t decode_expert_bytes_read;
    /// Of `expert_stall_seconds`, those during decode.
    double decode_expert_stall_seconds;
} st_generation_stats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// Version of the library that runs, such as "0.1.0"; compare with ST_VERSION, that of the header.
///
/// Never NULL; static memory. Can be called from any thread.
const char *st_version(void);

/// Binary interface of the library that runs. A program compiled with this header needs it to be equal to
/// ST_ABI_VERSION. Can be called from any thread.
uint32_t st_abi_version(void);

/// Message of the last call that failed on this thread; "" if none did.
///
/// Never NULL. UTF-8. Reading does not consume it. It belongs to the library and is valid until the next call
/// that fails on this thread, or the thread's end. Calls that succeed leave it alone.
const char *st_last_error_message(void);

/// Name of a status, such as "ST_IO"; "unknown status" for a number that is none.
///
/// Never NULL; static memory. Can be called from any thread.
const char *st_status_name(int32_t status);

/// Sets every field to its default. `size` is sizeof(st_model_options).
///
/// Errors: ST_INVALID_ARGUMENT if `options` is NULL or `size` can't be right.
st_status st_model_options_init(struct st_model_options *options, size_t size);

/// Sets every field to its default. `size` is sizeof(st_generate_options).
///
/// Errors: ST_INVALID_ARGUMENT if `options` is NULL or `size` can't be right.
st_status st_generate_options_init(struct st_generate_options *options, size_t size);

/// Opens the GGUF file `file` (any shard of a sharded one), NUL-terminated. `options` may be NULL for the
/// defaults.
///
/// On success *model is a new model; free it with st_model_free.
/// Errors: ST_NOT_FOUND, ST_IO, ST_MALFORMED, ST_UNSUPPORTED for the file; ST_BUDGET if the memory budget is
/// below what the model needs; ST_INVALID_ARGUMENT; ST_CANCELLED if the progress callback asked for it.
st_status st_model_open(const char *file, const struct st_model_options *options, struct st_model **model);

/// Frees a model; NULL is allowed. Its sessions may live on and keep what they need of it.
///
/// No other call may be using the handle `model` meanwhile or afterwards.
void st_model_free(struct st_model *model);

/// Changes the memory budget of a model in use: experts are evicted at once if it is smaller, and room for more of
/// them is made if it is larger. Sessions keep what they have; no result changes. Waits for the token or the part of a
/// prompt that is being computed.
///
/// Thread-safe. Errors: ST_BUDGET, and nothing is changed, if `bytes` is below what the model needs or does not hold
/// what its sessions have.
st_status st_model_set_memory_budget(const struct st_model *model,
                                     uint64_t bytes);

/// Writes to *plan what the model takes of its memory budget when it is opened. Set plan->size first.
///
/// Thread-safe. Errors: ST_INVALID_ARGUMENT.
st_status st_model_plan(const struct st_model *model, struct st_plan *plan);

/// As st_model_plan, for a file and options (NULL for the defaults), without loading its weights.
///
/// Thread-safe. Errors: as st_model_open; ST_BUDGET names the least budget.
st_status st_plan_file(const char *file, const struct st_model_options *options, struct st_plan *plan);

/// Writes the present state and counters to *stats. Set stats->size first.
///
/// Thread-safe. Errors: ST_INVALID_ARGUMENT.
st_status st_model_stats(const struct st_model *model, struct st_stats *stats);

/// Writes the number of tokens in the vocabulary, which is also the width of a row of logits.
///
/// Thread-safe. Errors: ST_INVALID_ARGUMENT.
st_status st_model_vocab_size(const struct st_model *model, size_t *size);

/// Writes the positions that a session of this model has at most.
///
/// Thread-safe. Errors: ST_INVALID_ARGUMENT.
st_status st_model_context_length(const struct st_model *model, size_t *length);

/// Converts `length` bytes of UTF-8 to tokens. Names of control tokens in the text, such as "<|im_start|>",
/// become those tokens only if `parse_special` is not 0: leave it 0 for text that you did not write.
///
/// On success *tokens is a new array of *count tokens, not NULL even for none; free it with st_tokens_free.
/// Thread-safe. Errors: ST_INVALID_ARGUMENT.
st_status st_model_tokenize(const struct st_model *model,
                            const char *text,
                            size_t length,
                            int32_t parse_special,
                            uint32_t **tokens,
                            size_t *count);

/// Converts tokens to text; bytes that form no character become U+FFFD. Control tokens are left out if
/// `skip_special` is not 0, else they appear as their names.
///
/// On success *text is a new NUL-terminated string; free it with st_string_free. *length is its length
/// without that NUL; `length` may be NULL.
/// Thread-safe. Errors: ST_INVALID_ARGUMENT, also for a token outside the vocabulary.
st_status st_model_detokenize(const struct st_model *model,
                              const uint32_t *tokens,
                              size_t count,
                              int32_t skip_special,
                              char **text,
                              size_t *length);

/// Frees a string that this library returned; NULL is allowed.
void st_string_free(char *text);

/// Frees an array of tokens that this library returned; NULL is allowed.
void st_tokens_free(uint32_t *tokens);

/// Makes an empty conversation. On success *session is new; free it with st_session_free. It stays valid when
/// `model` is freed.
///
/// Thread-safe. Errors: ST_INVALID_ARGUMENT; ST_BUDGET if the model's budget has no room for its buffers.
st_status st_session_new(const struct st_model *model, struct st_session **session);

/// Frees a session; NULL is allowed.
///
/// No other call, st_session_cancel included, may be using it meanwhile or afterwards: join the threads that
/// may cancel it first. Not from its own callbacks.
void st_session_free(struct st_session *session);

/// Stops the call in progress on the session, in prefill, decode or a wait for the disk, within the time of
/// one layer; generation then ends with ST_FINISH_CANCELLED, other calls with ST_CANCELLED. Without a call in
/// progress it does nothing: the next call starts afresh.
///
/// Thread-safe, and safe in a signal handler, as long as the session is not being freed. Errors:
/// ST_INVALID_ARGUMENT if `session` is NULL (do not risk that one in a signal handler).
st_status st_session_cancel(const struct st_session *session);

/// Adds `length` bytes of UTF-8 to the conversation. Control tokens written in it stay ordinary text. They
/// are evaluated by the next generation or st_session_evaluate.
///
/// Errors: ST_CONTEXT_OVERFLOW if they don't fit, ST_INVALID_ARGUMENT, ST_BUSY; nothing is added then.
st_status st_session_append_text(struct st_session *session, const char *text, size_t length);

/// Adds `count` tokens to the conversation; otherwise as st_session_append_text. At the start of a
/// conversation the model's BOS token goes before them, if it wants one.
st_status st_session_append_tokens(struct st_session *session, const uint32_t *tokens, size_t count);

/// Makes the conversation these `count` messages, written by the model's chat template and ready for the
/// assistant's turn. The part that is already evaluated is not evaluated again. Message text never becomes a
/// control token, so it can't forge a turn.
///
/// Errors: ST_CONTEXT_OVERFLOW, ST_INVALID_ARGUMENT (also when the template refuses the messages), ST_BUSY;
/// the conversation is unchanged then.
st_status st_session_set_chat(struct st_session *session, const struct st_message *messages, size_t count);

/// Evaluates the tokens added since the last evaluation, so that a later generation starts at once.
///
/// Errors: ST_CANCELLED, ST_IO, ST_BUDGET, ST_BUSY, ST_INVALID_ARGUMENT. The conversation stays; the call can
/// be repeated.
st_status st_session_evaluate(struct st_session *session);

/// Makes a second conversation with the same past; what is evaluated is shared, not computed again.
///
/// On success *fork is new; free it with st_session_free. Errors: ST_BUDGET, ST_BUSY, ST_INVALID_ARGUMENT.
st_status st_session_fork(const struct st_session *session, struct st_session **fork);

/// Goes back to the first `position` tokens of the conversation.
///
/// Errors: ST_INVALID_ARGUMENT if it has fewer, ST_BUSY.
st_status st_session_rewind(struct st_session *session, size_t position);

/// Writes the conversation and its KV cache to `file`, which appears when it is complete.
///
/// Errors: ST_IO, ST_NOT_FOUND (the folder), ST_BUSY, ST_INVALID_ARGUMENT.
st_status st_session_save(const struct st_session *session, const char *file);

/// Reads a conversation that st_session_save wrote with the same model file and kv_type.
///
/// On success *session is new; free it with st_session_free.
/// Errors: ST_NOT_FOUND, ST_IO, ST_MALFORMED, ST_UNSUPPORTED (another model or kv_type), ST_BUDGET,
/// ST_INVALID_ARGUMENT.
st_status st_session_load(const struct st_model *model, const char *file, struct st_session **session);

/// Writes the number of tokens of the conversation, prompts and generated ones.
///
/// Errors: ST_BUSY, ST_INVALID_ARGUMENT.
st_status st_session_token_count(const struct st_session *session, size_t *count);

/// Copies the tokens of the conversation.
///
/// On success *tokens is a new array of *count tokens, not NULL even for none; free it with st_tokens_free.
/// Errors: ST_BUSY, ST_INVALID_ARGUMENT.
st_status st_session_tokens(const struct st_session *session, uint32_t **tokens, size_t *count);

/// Evaluates the whole conversation again and gives the logits after each of its tokens, always of the full
/// head.
///
/// On success *logits is a new array of *count floats, one row of st_model_vocab_size floats for each token;
/// free it with st_logits_free. Errors: ST_CANCELLED, ST_IO, ST_BUDGET, ST_BUSY, ST_INVALID_ARGUMENT.
st_status st_session_logits(struct st_session *session, float **logits, size_t *count);

/// Frees logits that this library returned; NULL is allowed.
void st_logits_free(float *logits);

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
st_status st_session_generate(struct st_session *session,
                              const struct st_generate_options *options,
                              void *user_data,
                              st_piece_callback on_piece,
                              char **text,
                              struct st_generation_stats *stats);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SMALLTHINKER_H */
