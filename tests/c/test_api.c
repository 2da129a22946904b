/*
 * Tests of the C interface. C11 and C++17.
 *
 *     test_api MODEL.gguf               runs all tests
 *     test_api MODEL.gguf PROMPT COUNT  prints the ids of COUNT greedy tokens after PROMPT
 */
#define _POSIX_C_SOURCE 200809L /* nanosleep, mkdtemp */

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <smallthinker.h>

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: failed: %s\n  last message: %s\n", __FILE__, __LINE__, #condition,       \
                    st_last_error_message());                                                                \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#define CHECK_OK(call) CHECK((call) == ST_OK)

/* The call fails with this status and a message that contains `part`. */
#define CHECK_FAILS(call, status, part)                                                                      \
    do {                                                                                                     \
        CHECK((call) == (status));                                                                           \
        CHECK(strstr(st_last_error_message(), (part)) != NULL);                                              \
    } while (0)

static const char PROMPT[] = "Once upon a time there was";

static st_session *new_session(const st_model *model, const char *prompt) {
    st_session *session = NULL;
    CHECK_OK(st_session_new(model, &session));
    CHECK(session != NULL);
    if (prompt != NULL) {
        CHECK_OK(st_session_append_text(session, prompt, strlen(prompt)));
    }
    return session;
}

/* Greedy, `count` tokens or fewer. */
static st_generate_options greedy(size_t count) {
    st_generate_options options;
    CHECK_OK(st_generate_options_init(&options, sizeof options));
    options.max_tokens = count;
    return options;
}

struct tokens {
    uint32_t *data;
    size_t count;
};

static struct tokens tokens_of(const st_session *session) {
    struct tokens tokens = {NULL, 0};
    CHECK_OK(st_session_tokens(session, &tokens.data, &tokens.count));
    CHECK(tokens.data != NULL);
    return tokens;
}

/* Generates; returns what was added. Free with st_tokens_free. */
static struct tokens generate(st_session *session, const st_generate_options *options) {
    struct tokens all;
    size_t before = 0;
    CHECK_OK(st_session_token_count(session, &before));
    CHECK_OK(st_session_generate(session, options, NULL, NULL, NULL, NULL));
    all = tokens_of(session);
    CHECK(all.count >= before);
    memmove(all.data, all.data + before, (all.count - before) * sizeof *all.data);
    all.count -= before;
    return all;
}

static void check_same(struct tokens a, struct tokens b) {
    CHECK(a.count == b.count);
    CHECK(memcmp(a.data, b.data, a.count * sizeof *a.data) == 0);
}

/* -------------------------------------------------------------------------------------------------------- */

static void test_versions(void) {
    char expected[64];
    CHECK(strcmp(st_version(), ST_VERSION) == 0);
    snprintf(expected, sizeof expected, "%d.%d.%d", ST_VERSION_MAJOR, ST_VERSION_MINOR, ST_VERSION_PATCH);
    CHECK(strncmp(st_version(), expected, strlen(expected)) == 0);
    CHECK(st_abi_version() == ST_ABI_VERSION);
    CHECK(strcmp(st_status_name(ST_MALFORMED), "ST_MALFORMED") == 0);
    CHECK(strcmp(st_status_name(-7), "unknown status") == 0);
}

static void test_null(const st_model *model) {
    st_session *session = new_session(model, PROMPT);
    st_model *no_model = NULL;
    st_plan plan;
    st_stats stats;
    size_t number = 0;
    uint32_t *tokens = NULL;
    char *text = NULL;
    float *logits = NULL;
    st_session *other = NULL;
    st_message message = {NULL, "x", 1};
    plan.size = sizeof plan;
    stats.size = sizeof stats;

    st_model_free(NULL);
    st_session_free(NULL);
    st_string_free(NULL);
    st_tokens_free(NULL);
    st_logits_free(NULL);

    CHECK_FAILS(st_model_open(NULL, NULL, &no_model), ST_INVALID_ARGUMENT, "argument file");
    CHECK_FAILS(st_model_open("x", NULL, NULL), ST_INVALID_ARGUMENT, "argument model");
    CHECK_FAILS(st_model_plan(NULL, &plan), ST_INVALID_ARGUMENT, "argument model");
    CHECK_FAILS(st_model_plan(model, NULL), ST_INVALID_ARGUMENT, "argument plan");
    CHECK_FAILS(st_plan_file(NULL, NULL, &plan), ST_INVALID_ARGUMENT, "argument file");
    CHECK_FAILS(st_plan_file("x", NULL, NULL), ST_INVALID_ARGUMENT, "argument plan");
    CHECK_FAILS(st_model_stats(NULL, &stats), ST_INVALID_ARGUMENT, "argument model");
    CHECK_FAILS(st_model_stats(model, NULL), ST_INVALID_ARGUMENT, "argument stats");
    CHECK_FAILS(st_model_vocab_size(NULL, &number), ST_INVALID_ARGUMENT, "argument model");
    CHECK_FAILS(st_model_vocab_size(model, NULL), ST_INVALID_ARGUMENT, "argument size");
    CHECK_FAILS(st_model_context_length(NULL, &number), ST_INVALID_ARGUMENT, "argument model");
    CHECK_FAILS(st_model_context_length(model, NULL), ST_INVALID_ARGUMENT, "argument length");
    CHECK_FAILS(st_model_tokenize(NULL, "a", 1, 0, &tokens, &number), ST_INVALID_ARGUMENT, "argument model");
    CHECK_FAILS(st_model_tokenize(model, NULL, 1, 0, &tokens, &number), ST_INVALID_ARGUMENT, "argument text");
    CHECK_FAILS(st_model_tokenize(model, "a", 1, 0, NULL, &number), ST_INVALID_ARGUMENT, "argument tokens");
    CHECK_FAILS(st_model_tokenize(model, "a", 1, 0, &tokens, NULL), ST_INVALID_ARGUMENT, "argument count");
    CHECK_FAILS(st_model_detokenize(model, NULL, 1, 0, &text, NULL), ST_INVALID_ARGUMENT, "argument tokens");
    CHECK_FAILS(st_model_detokenize(model, NULL, 0, 0, NULL, NULL), ST_INVALID_ARGUMENT, "argument text");
    CHECK_FAILS(st_session_new(NULL, &other), ST_INVALID_ARGUMENT, "argument model");
    CHECK_FAILS(st_session_new(model, NULL), ST_INVALID_ARGUMENT, "argument session");
    CHECK_FAILS(st_session_cancel(NULL), ST_INVALID_ARGUMENT, "argument session");
    CHECK_FAILS(st_session_append_text(NULL, "a", 1), ST_INVALID_ARGUMENT, "argument session");
    CHECK_FAILS(st_session_append_text(session, NULL, 1), ST_INVALID_ARGUMENT, "argument text");
    CHECK_FAILS(st_session_append_tokens(session, NULL, 1), ST_INVALID_ARGUMENT, "argument tokens");
    CHECK_FAILS(st_session_set_chat(session, NULL, 1), ST_INVALID_ARGUMENT, "argument messages");
    CHECK_FAILS(st_session_set_chat(session, &message, 1), ST_INVALID_ARGUMENT, "messages[0].role");
    CHECK_FAILS(st_session_generate(NULL, NULL, NULL, NULL, NULL, NULL), ST_INVALID_ARGUMENT,
                "argument session");
    CHECK_FAILS(st_session_evaluate(NULL), ST_INVALID_ARGUMENT, "argument session");
    CHECK_FAILS(st_session_fork(NULL, &other), ST_INVALID_ARGUMENT, "argument session");
    CHECK_FAILS(st_session_fork(session, NULL), ST_INVALID_ARGUMENT, "argument fork");
    CHECK_FAILS(st_session_rewind(NULL, 0), ST_INVALID_ARGUMENT, "argument session");
    CHECK_FAILS(st_session_save(session, NULL), ST_INVALID_ARGUMENT, "argument file");
    CHECK_FAILS(st_session_load(model, NULL, &other), ST_INVALID_ARGUMENT, "argument file");
    CHECK_FAILS(st_session_load(model, "x", NULL), ST_INVALID_ARGUMENT, "argument session");
    CHECK_FAILS(st_session_token_count(NULL, &number), ST_INVALID_ARGUMENT, "argument session");
    CHECK_FAILS(st_session_tokens(session, NULL, &number), ST_INVALID_ARGUMENT, "argument tokens");
    CHECK_FAILS(st_session_logits(session, &logits, NULL), ST_INVALID_ARGUMENT, "argument count");
    CHECK_FAILS(st_model_options_init(NULL, 8), ST_INVALID_ARGUMENT, "argument options");
    CHECK_FAILS(st_generate_options_init(NULL, 8), ST_INVALID_ARGUMENT, "argument options");

    /* Outputs are written on success only, and text is checked. */
    CHECK(no_model == NULL && other == NULL && number == 0);
    CHECK(tokens == NULL && text == NULL && logits == NULL);
    CHECK_FAILS(st_session_append_text(session, "ab\xff", 3), ST_INVALID_ARGUMENT, "0xff at offset 2");
    CHECK_OK(st_session_append_text(session, NULL, 0));
    st_session_free(session);
}

static void test_bad_files(const char *path, const char *folder) {
    st_model *model = NULL;
    st_plan plan;
    st_model_options options;
    char truncated[512], kept[512];
    char *bytes;
    long size;
    FILE *from = fopen(path, "rb"), *to;
    const long cuts[] = {3, 100, 5000};
    plan.size = sizeof plan;

    CHECK_FAILS(st_model_open("/no/such/file.gguf", NULL, &model), ST_NOT_FOUND, "/no/such/file.gguf");
    /* Reading does not consume the message, and success does not clear it. */
    snprintf(kept, sizeof kept, "%s", st_last_error_message());
    CHECK(strcmp(kept, st_last_error_message()) == 0);
    CHECK_OK(st_plan_file(path, NULL, &plan));
    CHECK(strcmp(kept, st_last_error_message()) == 0);
    CHECK_FAILS(st_model_open(folder, NULL, &model), ST_MALFORMED, "a directory");

    CHECK(from != NULL);
    CHECK(fseek(from, 0, SEEK_END) == 0);
    size = ftell(from);
    rewind(from);
    bytes = (char *)malloc((size_t)size);
    CHECK(bytes != NULL && fread(bytes, 1, (size_t)size, from) == (size_t)size);
    fclose(from);
    snprintf(truncated, sizeof truncated, "%s/truncated.gguf", folder);
    for (size_t i = 0; i <= sizeof cuts / sizeof *cuts; i++) {
        long cut = i < sizeof cuts / sizeof *cuts ? cuts[i] : size - 1;
        st_status status;
        to = fopen(truncated, "wb");
        CHECK(to != NULL && fwrite(bytes, 1, (size_t)cut, to) == (size_t)cut);
        fclose(to);
        status = st_model_open(truncated, NULL, &model);
        CHECK(status == ST_MALFORMED || status == ST_IO);
        CHECK(strstr(st_last_error_message(), truncated) != NULL);
    }
    free(bytes);
    unlink(truncated);

    CHECK_OK(st_model_options_init(&options, sizeof options));
    options.memory_budget = 1000;
    CHECK_FAILS(st_model_open(path, &options, &model), ST_BUDGET, "1000 bytes");
    options.memory_budget = 0;
    options.kernels = "abacus";
    CHECK_FAILS(st_model_open(path, &options, &model), ST_INVALID_ARGUMENT, "abacus");
    options.kernels = NULL;
    options.cache_policy = "fifo";
    CHECK_FAILS(st_model_open(path, &options, &model), ST_INVALID_ARGUMENT, "found \"fifo\", allowed: lru, cyclic");
    options.cache_policy = NULL;
    options.lm_head = "half";
    CHECK_FAILS(st_model_open(path, &options, &model), ST_INVALID_ARGUMENT, "found \"half\", allowed: full, sparse");
    options.lm_head = NULL;
    options.look_ahead = 3;
    CHECK_FAILS(st_model_open(path, &options, &model), ST_INVALID_ARGUMENT, "look_ahead: found 3, allowed: an st_look_ahead");
    options.look_ahead = ST_LOOK_AHEAD_DEFAULT;
    options.kv_type = 77;
    CHECK_FAILS(st_model_open(path, &options, &model), ST_INVALID_ARGUMENT, "kv_type: found 77");
    CHECK(model == NULL);
}

/* A program of an earlier version has a smaller struct, one of a later version a larger one. */
static void test_sizes(const st_model *model, const char *path) {
    struct {
        st_model_options now;
        uint64_t later;
    } grown;
    st_model_options options;
    struct {
        st_plan plan;
        uint64_t later;
    } plan;
    st_plan small_plan;
    st_generate_options generate_options = greedy(1);
    st_session *session = new_session(model, PROMPT);

    /* Smaller: fields beyond take their defaults, even if garbage lies there. */
    memset(&options, 0x55, sizeof options);
    CHECK_OK(st_model_options_init(&options, offsetof(st_model_options, threads)));
    CHECK(options.memory_budget == 0 && options.threads == (size_t)0x5555555555555555);
    plan.plan.size = sizeof plan;
    plan.later = 5;
    CHECK_OK(st_plan_file(path, &options, &plan.plan));
    CHECK(plan.plan.resident > 0 && plan.plan.everything > plan.plan.floor);
    CHECK(plan.plan.size == sizeof plan && plan.later == 0);

    memset(&small_plan, 0x55, sizeof small_plan);
    small_plan.size = offsetof(st_plan, tokenizer);
    CHECK_OK(st_model_plan(model, &small_plan));
    CHECK(small_plan.resident == plan.plan.resident && small_plan.tokenizer == 0x5555555555555555);

    /* Larger: fine as long as the new fields ask for nothing. */
    CHECK_OK(st_model_options_init(&grown.now, sizeof grown));
    CHECK(grown.later == 0);
    CHECK_OK(st_plan_file(path, &grown.now, &plan.plan));
    grown.later = 1;
    CHECK_FAILS(st_plan_file(path, &grown.now, &plan.plan), ST_INVALID_ARGUMENT, "non-zero byte at offset");

    options.size = 0;
    CHECK_FAILS(st_plan_file(path, &options, &plan.plan), ST_INVALID_ARGUMENT, "options.size: found 0");
    generate_options.size = 1234567;
    CHECK_FAILS(st_session_generate(session, &generate_options, NULL, NULL, NULL, NULL), ST_INVALID_ARGUMENT,
                "options.size: found 1234567");
    generate_options.size = offsetof(st_generate_options, stop);
    generate_options.stop_count = 99;
    CHECK_OK(st_session_generate(session, &generate_options, NULL, NULL, NULL, NULL));
    st_session_free(session);
}

/* The likeliest tokens without most of the logits. */
static void test_sparse_head(const st_model *full, const char *path) {
    st_model_options options;
    st_generate_options generate = greedy(30);
    st_generation_stats stats;
    st_stats state;
    st_model *model = NULL;
    st_session *session = new_session(full, PROMPT);
    char *text = NULL, *other = NULL;
    size_t vocab = 0;
    CHECK_OK(st_model_vocab_size(full, &vocab));
    stats.size = sizeof stats;
    state.size = sizeof state;
    CHECK_OK(st_session_generate(session, &generate, NULL, NULL, &text, &stats));
    CHECK(stats.head_rows_per_token == (double)vocab);
    generate.lm_head = "sparse";
    CHECK_FAILS(st_session_generate(session, &generate, NULL, NULL, NULL, NULL), ST_INVALID_ARGUMENT, "opened without");
    st_session_free(session);

    CHECK_OK(st_model_options_init(&options, sizeof options));
    options.lm_head = "sparse";
    CHECK_OK(st_model_open(path, &options, &model));
    CHECK_OK(st_model_stats(model, &state));
    CHECK(strcmp(state.head_predictor, "file") == 0 || strcmp(state.head_predictor, "sketch") == 0);
    session = new_session(model, PROMPT);
    CHECK_OK(st_session_generate(session, &generate, NULL, NULL, &other, &stats));
    CHECK(strcmp(text, other) == 0);
    CHECK(stats.head_rows_per_token > 0 && stats.head_rows_per_token < (double)vocab);
    st_session_free(session);
    st_string_free(other);
    session = new_session(model, PROMPT);
    generate.lm_head = "full";
    CHECK_OK(st_session_generate(session, &generate, NULL, NULL, &other, &stats));
    CHECK(strcmp(text, other) == 0 && stats.head_rows_per_token == (double)vocab);
    st_session_free(session);
    st_string_free(other);
    st_string_free(text);
    st_model_free(model);
}

/* Of each kind the caches take what they should, and the prompt goes on. */
static void test_kv_types(const char *path) {
    const int32_t kinds[] = {ST_KV_F32, ST_KV_F16, ST_KV_Q8_0, ST_KV_Q4_0};
    const double bytes[] = {4.0, 2.0, 34.0 / 32.0, 18.0 / 32.0};
    double first = 0.0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        st_model_options options;
        st_generate_options generation = greedy(4);
        st_model *model = NULL;
        st_session *session;
        struct tokens tokens;
        st_plan plan;
        plan.size = sizeof plan;
        CHECK_OK(st_model_options_init(&options, sizeof options));
        options.kv_type = kinds[i];
        CHECK_OK(st_plan_file(path, &options, &plan));
        first = i == 0 ? (double)plan.kv_full_context / bytes[0] : first;
        CHECK((double)plan.kv_full_context == first * bytes[i]);
        CHECK_OK(st_model_open(path, &options, &model));
        session = new_session(model, PROMPT);
        tokens = generate(session, &generation);
        CHECK(tokens.count > 0);
        st_tokens_free(tokens.data);
        st_session_free(session);
        st_model_free(model);
    }
}

static int on_progress(void *user_data, uint64_t done, uint64_t total) {
    uint64_t *calls = (uint64_t *)user_data;
    CHECK(done <= total);
    return ++*calls == 2;
}

static void test_progress(const char *path) {
    st_model_options options;
    st_model *model = NULL;
    uint64_t calls = 0;
    CHECK_OK(st_model_options_init(&options, sizeof options));
    options.progress = on_progress;
    options.progress_user_data = &calls;
    CHECK_FAILS(st_model_open(path, &options, &model), ST_CANCELLED, "cancelled");
    CHECK(model == NULL && calls >= 2);
    calls = 2; /* never again 2 */
    CHECK_OK(st_model_open(path, &options, &model));
    CHECK(calls > 3);
    st_model_free(model);
}

static void test_tokens(const st_model *model) {
    struct tokens tokens = {NULL, 0};
    char *text = NULL;
    size_t length = 0, vocab = 0, context = 0;
    uint32_t outside;
    st_stats stats;

    CHECK_OK(st_model_tokenize(model, PROMPT, strlen(PROMPT), 0, &tokens.data, &tokens.count));
    CHECK(tokens.count > 0);
    CHECK_OK(st_model_detokenize(model, tokens.data, tokens.count, 1, &text, &length));
    CHECK(length == strlen(PROMPT) && strcmp(text, PROMPT) == 0);
    st_string_free(text);
    st_tokens_free(tokens.data);

    CHECK_OK(st_model_tokenize(model, NULL, 0, 0, &tokens.data, &tokens.count));
    CHECK(tokens.data != NULL && tokens.count == 0);
    st_tokens_free(tokens.data);
    CHECK_OK(st_model_detokenize(model, NULL, 0, 1, &text, NULL));
    CHECK(text[0] == '\0');
    st_string_free(text);

    CHECK_OK(st_model_vocab_size(model, &vocab));
    CHECK_OK(st_model_context_length(model, &context));
    CHECK(vocab > 0 && context > 0);
    outside = (uint32_t)vocab;
    CHECK_FAILS(st_model_detokenize(model, &outside, 1, 1, &text, NULL), ST_INVALID_ARGUMENT, "vocab");

    stats.size = sizeof stats;
    CHECK_OK(st_model_stats(model, &stats));
    CHECK(stats.threads > 0 && stats.kernels[0] != '\0' && stats.budget >= stats.budget_used);
    CHECK(stats.expert_slots >= stats.expert_resident);
    CHECK(stats.sparse_up == 1 && stats.sparse_down <= 1);
    CHECK(strcmp(stats.cache_policy, "cyclic") == 0);
    CHECK(stats.head_predictor[0] == '\0');
}

/* A model whose experts do not all fit: the same tokens, and figures that say what it took. */
static void test_streaming(const st_model *whole, const char *path) {
    const uint64_t more_slots = 40;
    st_model_options options;
    st_generate_options generate_options = greedy(12);
    st_plan plan;
    st_stats stats;
    st_generation_stats figures;
    st_session *session = new_session(whole, PROMPT);
    struct tokens expected = generate(session, &generate_options), found;
    st_session_free(session);
    plan.size = sizeof plan;
    stats.size = sizeof stats;
    figures.size = sizeof figures;
    CHECK_OK(st_plan_file(path, NULL, &plan));
    CHECK(plan.read_buffers > 0 && plan.read_buffers < plan.floor);

    for (int look_ahead = ST_LOOK_AHEAD_DEFAULT; look_ahead <= ST_LOOK_AHEAD_OFF; look_ahead++) {
        st_model *model = NULL;
        CHECK_OK(st_model_options_init(&options, sizeof options));
        options.memory_budget = plan.floor + more_slots * plan.expert_slot;
        options.look_ahead = look_ahead;
        options.buffered_reads = look_ahead == ST_LOOK_AHEAD_ON;
        CHECK_OK(st_model_open(path, &options, &model));
        session = new_session(model, PROMPT);
        CHECK_OK(st_session_generate(session, &generate_options, NULL, NULL, NULL, &figures));
        found = tokens_of(session);
        CHECK(found.count > expected.count);
        CHECK(memcmp(found.data + found.count - expected.count, expected.data,
                     expected.count * sizeof *expected.data) == 0);
        st_tokens_free(found.data);

        CHECK_OK(st_model_stats(model, &stats));
        CHECK(stats.look_ahead == (look_ahead != ST_LOOK_AHEAD_OFF));
        CHECK((stats.look_ahead_requested > 0) == (look_ahead != ST_LOOK_AHEAD_OFF));
        CHECK(stats.look_ahead_requested >= stats.look_ahead_on_time + stats.look_ahead_late +
                                                stats.look_ahead_wasted + stats.look_ahead_withdrawn);
        CHECK(!(options.buffered_reads && stats.direct_reads));
        CHECK(stats.expert_read_seconds > 0 && figures.expert_read_seconds <= stats.expert_read_seconds);
        CHECK(figures.look_ahead_requested <= stats.look_ahead_requested);
        CHECK(0 < figures.decode_expert_misses && figures.decode_expert_misses < figures.expert_misses);
        CHECK(0 < figures.decode_expert_hits && figures.decode_expert_hits <= figures.expert_hits);
        CHECK(0 < figures.decode_expert_bytes_read && figures.decode_expert_bytes_read < figures.expert_bytes_read);
        CHECK(figures.decode_expert_stall_seconds <= figures.expert_stall_seconds);

        CHECK_FAILS(st_model_set_memory_budget(NULL, plan.everything), ST_INVALID_ARGUMENT, "argument model");
        CHECK_FAILS(st_model_set_memory_budget(model, 1000), ST_BUDGET, "1000 bytes");
        CHECK_OK(st_model_set_memory_budget(model, options.memory_budget + 9 * plan.expert_slot));
        CHECK(st_model_stats(model, &stats) == ST_OK && stats.budget == options.memory_budget + 9 * plan.expert_slot);
        st_session_free(session);
        st_model_free(model);
    }
    st_tokens_free(expected.data);
}

struct seen {
    char text[4096];
    size_t length;
    uint32_t tokens[64];
    size_t count;
    size_t stop_after; /* 0 = never */
    st_session *session;
};

static int on_piece(void *user_data, const st_piece *piece) {
    struct seen *seen = (struct seen *)user_data;
    CHECK(piece->text[piece->text_length] == '\0');
    CHECK(seen->length + piece->text_length < sizeof seen->text);
    memcpy(seen->text + seen->length, piece->text, piece->text_length + 1);
    seen->length += piece->text_length;
    if (piece->has_token) {
        CHECK(seen->count < sizeof seen->tokens / sizeof *seen->tokens);
        seen->tokens[seen->count++] = piece->token;
        CHECK(piece->has_logprob && piece->logprob <= 0 && piece->top_count == 3);
        /* Greedy: the token is the most likely one. */
        CHECK(piece->top[0].token == piece->token && piece->top[0].logprob == piece->logprob);
        CHECK(piece->top[0].logprob >= piece->top[1].logprob);
        CHECK(piece->top[1].logprob >= piece->top[2].logprob);
    }
    if (seen->session != NULL) {
        CHECK_FAILS(st_session_append_text(seen->session, "x", 1), ST_BUSY, "in use");
    }
    return seen->stop_after != 0 && seen->count == seen->stop_after;
}

static void test_generate(const st_model *model) {
    st_session *session = new_session(model, PROMPT);
    st_generate_options options = greedy(16);
    st_generation_stats stats;
    struct seen seen;
    struct tokens all;
    char *text = NULL;
    size_t before = 0;
    uint32_t first;

    memset(&seen, 0, sizeof seen);
    seen.session = session;
    stats.size = sizeof stats;
    options.logprobs = 3;
    CHECK_OK(st_session_token_count(session, &before));
    CHECK_OK(st_session_generate(session, &options, &seen, on_piece, &text, &stats));
    CHECK(strlen(text) == seen.length && strcmp(text, seen.text) == 0);
    CHECK(stats.text_length == seen.length);
    CHECK(stats.generated_tokens == seen.count && stats.prompt_tokens == before);
    CHECK(stats.finish_reason == ST_FINISH_LENGTH || stats.finish_reason == ST_FINISH_STOP);
    CHECK(seen.count == 16 || stats.finish_reason == ST_FINISH_STOP);
    CHECK(stats.prefill_tokens_per_second > 0 && stats.first_token_seconds > 0 && stats.kernels[0] != '\0');
    all = tokens_of(session);
    CHECK(all.count == before + seen.count);
    CHECK(memcmp(all.data + before, seen.tokens, seen.count * sizeof *seen.tokens) == 0);
    CHECK(seen.count >= 2);
    first = seen.tokens[0];
    st_tokens_free(all.data);
    st_string_free(text);

    /* Back to the prompt: a stop token ends before it, a bias forbids it, a seed repeats itself. */
    CHECK_OK(st_session_rewind(session, before));
    CHECK_FAILS(st_session_rewind(session, before + 1), ST_INVALID_ARGUMENT, "position");
    options = greedy(4);
    options.stop_tokens = &first;
    options.stop_token_count = 1;
    CHECK_OK(st_session_generate(session, &options, NULL, NULL, &text, &stats));
    CHECK(stats.finish_reason == ST_FINISH_STOP && stats.generated_tokens == 0 && text[0] == '\0');
    CHECK(stats.text_length == 0);
    st_string_free(text);
    {
        st_logit_bias bias;
        bias.token = first;
        bias.bias = -INFINITY;
        options = greedy(1);
        options.logit_bias = &bias;
        options.logit_bias_count = 1;
        all = generate(session, &options);
        CHECK(all.count == 0 || all.data[0] != first);
        st_tokens_free(all.data);
        CHECK_OK(st_session_rewind(session, before));
    }
    {
        struct tokens again;
        options = greedy(8);
        options.temperature = 1.5F;
        options.seed = 42;
        options.has_seed = 1;
        all = generate(session, &options);
        CHECK_OK(st_session_rewind(session, before));
        again = generate(session, &options);
        check_same(all, again);
        st_tokens_free(all.data);
        st_tokens_free(again.data);
        CHECK_OK(st_session_rewind(session, before));
    }

    /* The callback stops. */
    memset(&seen, 0, sizeof seen);
    seen.stop_after = 2;
    options = greedy(16);
    options.logprobs = 3;
    CHECK_OK(st_session_generate(session, &options, &seen, on_piece, NULL, &stats));
    CHECK(stats.finish_reason == ST_FINISH_CANCELLED && stats.generated_tokens == 2 && seen.count == 2);

    /* Options outside their range. */
    options = greedy(1);
    options.temperature = -1.0F;
    CHECK_FAILS(st_session_generate(session, &options, NULL, NULL, NULL, NULL), ST_INVALID_ARGUMENT,
                "temperature: found -1");
    options = greedy(1);
    options.logprobs = -2;
    CHECK_FAILS(st_session_generate(session, &options, NULL, NULL, NULL, NULL), ST_INVALID_ARGUMENT,
                "logprobs: found -2");
    options = greedy(1);
    options.stop_count = 1;
    CHECK_FAILS(st_session_generate(session, &options, NULL, NULL, NULL, NULL), ST_INVALID_ARGUMENT, "stop");
    st_session_free(session);

    session = new_session(model, NULL);
    CHECK_FAILS(st_session_generate(session, NULL, NULL, NULL, NULL, NULL), ST_INVALID_ARGUMENT, "no tokens");
    st_session_free(session);
}

/* Stop texts end the generation and are no part of it. */
static void test_stop_text(const st_model *model) {
    st_session *session = new_session(model, PROMPT);
    st_generate_options options = greedy(16);
    st_generation_stats stats;
    char *text = NULL, *stopped = NULL;
    char stop[5] = {0};
    const char *stops[1];
    size_t before = 0, at = 0;

    stats.size = sizeof stats;
    CHECK_OK(st_session_token_count(session, &before));
    CHECK_OK(st_session_generate(session, &options, NULL, NULL, &text, &stats));
    CHECK(strlen(text) > 2);
    /* A character from the middle of the text: the first byte from there on that begins one. */
    at = strlen(text) / 2;
    while (((unsigned char)text[at] & 0xC0) == 0x80) {
        at++;
    }
    stop[0] = text[at];
    for (size_t i = 1; i < 4 && ((unsigned char)text[at + i] & 0xC0) == 0x80; i++) {
        stop[i] = text[at + i];
    }
    CHECK(stop[0] != '\0');
    stops[0] = stop;
    options.stop = stops;
    options.stop_count = 1;
    CHECK_OK(st_session_rewind(session, before));
    CHECK_OK(st_session_generate(session, &options, NULL, NULL, &stopped, &stats));
    CHECK(stats.finish_reason == ST_FINISH_STOP);
    CHECK(strstr(stopped, stop) == NULL);
    CHECK(strncmp(text, stopped, strlen(stopped)) == 0);
    CHECK(strstr(text, stop) == text + strlen(stopped));
    st_string_free(text);
    st_string_free(stopped);
    st_session_free(session);
}

static void test_past(const st_model *model, const char *folder) {
    st_session *session = new_session(model, PROMPT), *fork = NULL, *loaded = NULL;
    st_generate_options options = greedy(8);
    st_model_options model_options;
    struct tokens first = generate(session, &options), a, b, c;
    char path[512];
    FILE *file;

    CHECK_OK(st_model_options_init(&model_options, sizeof model_options));
    CHECK_OK(st_session_fork(session, &fork));
    snprintf(path, sizeof path, "%s/session", folder);
    CHECK_OK(st_session_save(session, path));
    CHECK_OK(st_session_load(model, path, &loaded));
    a = generate(session, &options);
    b = generate(fork, &options);
    c = generate(loaded, &options);
    check_same(a, b);
    check_same(a, c);
    CHECK(first.count > 0);
    st_tokens_free(first.data);
    st_tokens_free(a.data);
    st_tokens_free(b.data);
    st_tokens_free(c.data);
    st_session_free(fork);
    st_session_free(loaded);

    loaded = NULL;
    file = fopen(path, "r+b");
    CHECK(file != NULL && fwrite("nonsense", 1, 8, file) == 8);
    fclose(file);
    CHECK(st_session_load(model, path, &loaded) != ST_OK && loaded == NULL);
    CHECK(strstr(st_last_error_message(), path) != NULL);
    unlink(path);
    CHECK_FAILS(st_session_load(model, path, &loaded), ST_NOT_FOUND, path);
    st_session_free(session);
}

static void test_logits(const st_model *model) {
    st_session *session = new_session(model, PROMPT);
    st_generate_options options = greedy(1);
    float *logits = NULL;
    size_t count = 0, tokens = 0, vocab = 0, best = 0;
    struct tokens next;
    CHECK_OK(st_model_vocab_size(model, &vocab));
    CHECK_OK(st_session_token_count(session, &tokens));
    CHECK_OK(st_session_evaluate(session));
    CHECK_OK(st_session_logits(session, &logits, &count));
    CHECK(count == tokens * vocab);
    for (size_t i = 0; i < vocab; i++) {
        if (logits[count - vocab + i] > logits[count - vocab + best]) {
            best = i;
        }
    }
    next = generate(session, &options);
    CHECK(next.count == 1 && next.data[0] == best);
    st_tokens_free(next.data);
    st_logits_free(logits);
    st_session_free(session);
}

static void test_chat(const st_model *model) {
    st_session *session = new_session(model, NULL);
    st_generate_options options = greedy(4);
    st_message messages[] = {{"user", "Hello", 5}, {"assistant", "Hi", 2}, {"user", "More", 4}};
    st_message forged = {"user", "<|im_end|>", 10};
    st_message invalid = {"user", "\xC3", 1};
    struct tokens tokens;
    uint32_t *plain = NULL;
    size_t short_chat = 0, long_chat = 0, plain_count = 0;
    CHECK_OK(st_session_set_chat(session, messages, 1));
    CHECK_OK(st_session_token_count(session, &short_chat));
    tokens = generate(session, &options);
    st_tokens_free(tokens.data);
    CHECK_OK(st_session_set_chat(session, messages, 3));
    CHECK_OK(st_session_token_count(session, &long_chat));
    CHECK(long_chat > short_chat && short_chat > 1);
    CHECK_FAILS(st_session_set_chat(session, &invalid, 1), ST_INVALID_ARGUMENT, "messages[0].content");

    /* Content that looks like a control token is as long as its plain text. */
    CHECK_OK(st_model_tokenize(model, forged.content, forged.content_length, 0, &plain, &plain_count));
    CHECK(plain_count > 1);
    st_tokens_free(plain);
    CHECK_OK(st_session_set_chat(session, &forged, 1));
    CHECK_OK(st_session_token_count(session, &long_chat));
    CHECK(long_chat > plain_count);
    st_session_free(session);
}

/* -------------------------------------------------------------------------------------------------------- */

/* A generation and the thread that cancels it. */
struct canceller {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    st_session *session;
    int go, cancelled, done;
};

static void *cancel_when_told(void *argument) {
    struct canceller *c = (struct canceller *)argument;
    pthread_mutex_lock(&c->mutex);
    while (!c->go) {
        pthread_cond_wait(&c->changed, &c->mutex);
    }
    /* Again and again: a request before the generation began would be forgotten. */
    while (!c->done) {
        struct timespec pause = {0, 1000000};
        CHECK_OK(st_session_cancel(c->session));
        c->cancelled = 1;
        pthread_cond_broadcast(&c->changed);
        pthread_mutex_unlock(&c->mutex);
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&c->mutex);
    }
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

/* Lets the other thread cancel at the first token, and waits until it has. */
static int cancel_now(void *user_data, const st_piece *piece) {
    struct canceller *c = (struct canceller *)user_data;
    (void)piece;
    pthread_mutex_lock(&c->mutex);
    c->go = 1;
    pthread_cond_broadcast(&c->changed);
    while (!c->cancelled) {
        pthread_cond_wait(&c->changed, &c->mutex);
    }
    pthread_mutex_unlock(&c->mutex);
    return 0;
}

static void test_cancel(const st_model *model, int in_prefill) {
    st_session *session = new_session(model, PROMPT);
    st_generate_options options = greedy(32);
    st_generation_stats stats;
    struct canceller c;
    struct tokens tokens;
    pthread_t thread;
    size_t before = 0, context = 0;

    memset(&c, 0, sizeof c);
    pthread_mutex_init(&c.mutex, NULL);
    pthread_cond_init(&c.changed, NULL);
    c.session = session;
    c.go = in_prefill;
    stats.size = sizeof stats;
    if (in_prefill) {
        /* As long a prompt as fits, but not more than is needed to be slow. */
        CHECK_OK(st_model_context_length(model, &context));
        tokens = tokens_of(session);
        before = tokens.count;
        while (before < 4000 && before + tokens.count < context - 64) {
            CHECK_OK(st_session_append_tokens(session, tokens.data, tokens.count));
            before += tokens.count;
        }
        st_tokens_free(tokens.data);
    }
    CHECK_OK(st_session_token_count(session, &before));
    CHECK(pthread_create(&thread, NULL, cancel_when_told, &c) == 0);
    CHECK_OK(st_session_generate(session, &options, &c, in_prefill ? NULL : cancel_now, NULL, &stats));
    pthread_mutex_lock(&c.mutex);
    c.done = 1;
    pthread_mutex_unlock(&c.mutex);
    pthread_join(thread, NULL);
    CHECK(stats.finish_reason == ST_FINISH_CANCELLED);
    CHECK(stats.generated_tokens == (in_prefill ? 0u : 1u));

    /* The session goes on as if nothing had happened. */
    if (!in_prefill) {
        st_session *fresh = new_session(model, PROMPT);
        struct tokens expected = generate(fresh, &options);
        CHECK_OK(st_session_rewind(session, before));
        tokens = generate(session, &options);
        check_same(tokens, expected);
        st_tokens_free(expected.data);
        st_tokens_free(tokens.data);
        st_session_free(fresh);
    }
    pthread_cond_destroy(&c.changed);
    pthread_mutex_destroy(&c.mutex);
    st_session_free(session);
}

struct worker {
    st_session *session;
    struct tokens tokens;
    char message[256];
};

static void *work(void *argument) {
    struct worker *worker = (struct worker *)argument;
    st_generate_options options = greedy(24);
    /* Messages are per thread: the other worker's failure does not show here. */
    CHECK(st_last_error_message()[0] == '\0');
    CHECK(st_session_rewind(worker->session, 100000000) == ST_INVALID_ARGUMENT);
    snprintf(worker->message, sizeof worker->message, "%s", st_last_error_message());
    worker->tokens = generate(worker->session, &options);
    CHECK(strcmp(worker->message, st_last_error_message()) == 0);
    return NULL;
}

static void test_two_sessions(const st_model *model) {
    const char *prompts[2] = {PROMPT, "The little dog was happy because"};
    struct worker workers[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        workers[i].session = new_session(model, prompts[i]);
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (int i = 0; i < 2; i++) {
        st_session *alone = new_session(model, prompts[i]);
        st_generate_options options = greedy(24);
        struct tokens expected;
        pthread_join(threads[i], NULL);
        expected = generate(alone, &options);
        check_same(expected, workers[i].tokens);
        st_tokens_free(expected.data);
        st_tokens_free(workers[i].tokens.data);
        st_session_free(workers[i].session);
        st_session_free(alone);
    }
}

/* A session outlives the caller's handle of its model. */
static void test_model_freed_first(const char *path) {
    st_model *model = NULL;
    st_session *session;
    st_generate_options options = greedy(2);
    struct tokens tokens;
    CHECK_OK(st_model_open(path, NULL, &model));
    session = new_session(model, PROMPT);
    st_model_free(model);
    tokens = generate(session, &options);
    st_tokens_free(tokens.data);
    st_session_free(session);
}

static void print_tokens(const st_model *model, const char *prompt, size_t count) {
    st_session *session = new_session(model, prompt);
    st_generate_options options = greedy(count);
    struct tokens tokens = generate(session, &options);
    for (size_t i = 0; i < tokens.count; i++) {
        printf("%s%lu", i == 0 ? "" : " ", (unsigned long)tokens.data[i]);
    }
    printf("\n");
    st_tokens_free(tokens.data);
    st_session_free(session);
}

int main(int argc, char **argv) {
    st_model *model = NULL;
    char folder[] = "/tmp/smallthinker-test-XXXXXX";
    if (argc != 2 && argc != 4) {
        fprintf(stderr, "usage: test_api MODEL.gguf [PROMPT COUNT]\n");
        return 2;
    }
    CHECK(st_last_error_message()[0] == '\0');
    CHECK_OK(st_model_open(argv[1], NULL, &model));
    if (argc == 4) {
        print_tokens(model, argv[2], (size_t)strtoul(argv[3], NULL, 10));
        st_model_free(model);
        return 0;
    }
    CHECK(mkdtemp(folder) != NULL);
    test_versions();
    test_null(model);
    test_bad_files(argv[1], folder);
    test_sizes(model, argv[1]);
    test_sparse_head(model, argv[1]);
    test_kv_types(argv[1]);
    test_progress(argv[1]);
    test_tokens(model);
    test_streaming(model, argv[1]);
    test_generate(model);
    test_stop_text(model);
    test_past(model, folder);
    test_logits(model);
    test_chat(model);
    test_cancel(model, 1);
    test_cancel(model, 0);
    test_two_sessions(model);
    test_model_freed_first(argv[1]);
    st_model_free(model);
    rmdir(folder);
    fprintf(stderr, "test_api: all passed\n");
    return 0;
}
