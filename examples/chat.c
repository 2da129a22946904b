/*
 * Talks with a model.
 *
 *     chat MODEL.gguf "What is a cat?"    answers once
 *     chat MODEL.gguf                     reads a question per line until the end of the input
 *
 * Ctrl-C stops an answer; between answers it ends the program.
 */
#define _POSIX_C_SOURCE 200809L /* sigaction, getline */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <smallthinker.h>

/* The session whose answer Ctrl-C stops; NULL while none is written. */
static st_session *volatile answering;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    if (answering != NULL) {
        st_session_cancel(answering);
    } else {
        _Exit(130);
    }
}

static int report(const char *what) {
    fprintf(stderr, "chat: %s: %s\n", what, st_last_error_message());
    return -1;
}

/* Text that grows. */
struct buffer {
    char *data;
    size_t length;
};

static int append(struct buffer *buffer, const char *data, size_t length) {
    char *grown = realloc(buffer->data, buffer->length + length + 1);
    if (grown == NULL) {
        return -1;
    }
    memcpy(grown + buffer->length, data, length);
    buffer->data = grown;
    buffer->length += length;
    buffer->data[buffer->length] = '\0';
    return 0;
}

/* What was said so far. Even messages are the user's, odd ones the model's. */
struct history {
    st_message *messages;
    size_t count;
};

/* Takes over `content`. */
static int add_message(struct history *history, struct buffer content) {
    st_message *grown = realloc(history->messages, (history->count + 1) * sizeof *grown);
    if (grown == NULL) {
        free(content.data);
        return -1;
    }
    history->messages = grown;
    grown[history->count].role = history->count % 2 == 0 ? "user" : "assistant";
    grown[history->count].content = content.data;
    grown[history->count].content_length = content.length;
    history->count++;
    return 0;
}

static void free_history(struct history *history) {
    for (size_t i = 0; i < history->count; i++) {
        free((char *)history->messages[i].content);
    }
    free(history->messages);
}

/* Shows a piece as it comes and keeps it. */
static int on_piece(void *user_data, const st_piece *piece) {
    fwrite(piece->text, 1, piece->text_length, stdout);
    fflush(stdout);
    return append((struct buffer *)user_data, piece->text, piece->text_length);
}

/* Takes over `question`; adds it and the answer to the history. */
static int answer(st_session *session, struct history *history, struct buffer question) {
    st_generate_options options;
    st_generation_stats stats;
    struct buffer reply = {NULL, 0};
    st_status status;

    if (add_message(history, question) != 0) {
        return -1;
    }
    if (st_session_set_chat(session, history->messages, history->count) != ST_OK) {
        return report("question");
    }
    st_generate_options_init(&options, sizeof options);
    options.max_tokens = 512;
    stats.size = sizeof stats;

    answering = session;
    status = st_session_generate(session, &options, &reply, on_piece, NULL, &stats);
    answering = NULL;
    putchar('\n');
    if (status != ST_OK) {
        free(reply.data);
        return report("answer");
    }
    fprintf(stderr, "[%llu tokens, %.1f per second]\n", (unsigned long long)stats.generated_tokens,
            stats.decode_tokens_per_second);
    return append(&reply, "", 0) == 0 ? add_message(history, reply) : -1;
}

static int talk(st_session *session, int argc, char **argv) {
    struct history history = {NULL, 0};
    int result = 0;

    if (argc > 2) {
        struct buffer question = {NULL, 0};
        for (int i = 2; i < argc && result == 0; i++) {
            result = append(&question, argv[i], strlen(argv[i]));
            if (result == 0 && i + 1 < argc) {
                result = append(&question, " ", 1);
            }
        }
        if (result == 0) {
            result = answer(session, &history, question);
        } else {
            free(question.data);
        }
    } else {
        char *line = NULL;
        size_t room = 0;
        ssize_t length;
        while (result == 0 && (fputs("> ", stderr), length = getline(&line, &room, stdin)) > 0) {
            struct buffer question = {NULL, 0};
            size_t bytes = (size_t)length;
            if (line[bytes - 1] == '\n') {
                bytes--;
            }
            if (bytes > 0) {
                result = append(&question, line, bytes);
                result = result == 0 ? answer(session, &history, question) : result;
            }
        }
        free(line);
    }
    free_history(&history);
    return result;
}

int main(int argc, char **argv) {
    st_model *model = NULL;
    st_session *session = NULL;
    struct sigaction action;
    int result = -1;

    if (argc < 2) {
        fprintf(stderr, "usage: chat MODEL.gguf [QUESTION...]\n");
        return 2;
    }
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    sigaction(SIGINT, &action, NULL);

    if (st_model_open(argv[1], NULL, &model) != ST_OK) {
        report("model");
    } else if (st_session_new(model, &session) != ST_OK) {
        report("session");
    } else {
        result = talk(session, argc, argv);
    }
    st_session_free(session);
    st_model_free(model);
    return result == 0 ? 0 : 1;
}
