"""Errors: their classes, their parents, and messages that name what was wrong."""

import gc
import os

import pytest

import smallthinker
from smallthinker import InvalidArgument, Model, SmallThinkerError

PROMPT = "Once upon a time"


@pytest.mark.parametrize(
    ("name", "parent"),
    [
        ("NotFound", FileNotFoundError),
        ("IoError", OSError),
        ("InvalidArgument", ValueError),
        ("ModelFormatError", ValueError),
        ("ContextOverflow", ValueError),
        ("BudgetError", MemoryError),
        ("Cancelled", Exception),
        ("InternalError", Exception),
    ],
)
def test_one_base_and_a_builtin_parent(name, parent):
    error = getattr(smallthinker, name)
    assert issubclass(error, SmallThinkerError)
    assert issubclass(error, parent)


def test_missing_file(tmp_path):
    missing = tmp_path / "missing.gguf"
    with pytest.raises(smallthinker.NotFound, match="missing.gguf") as caught:
        Model(missing)
    assert isinstance(caught.value, FileNotFoundError)
    assert os.fspath(caught.value.filename) == os.fspath(missing)


def test_not_a_model(tmp_path):
    path = tmp_path / "text.gguf"
    path.write_text("this is not a model file, whatever its name says\n" * 10)
    with pytest.raises(smallthinker.ModelFormatError, match="magic"):
        Model(path)
    with pytest.raises(smallthinker.ModelFormatError, match=r"text\.gguf"):
        smallthinker.inspect(path)


def test_truncated_model(model_path, tmp_path):
    with open(model_path, "rb") as file:
        whole = file.read()
    path = tmp_path / "short.gguf"
    for size in (4, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(smallthinker.ModelFormatError, match=r"short\.gguf"):
            Model(path)


def test_folder_instead_of_file(tmp_path):
    with pytest.raises(smallthinker.ModelFormatError, match="directory"):
        Model(tmp_path)


def test_budget_below_the_floor(model_path):
    floor = smallthinker.plan(model_path)["floor"]
    with pytest.raises(smallthinker.BudgetError, match=str(floor)) as caught:
        Model(model_path, memory_budget=floor - 1)
    assert isinstance(caught.value, MemoryError)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"threads": 0}, "threads"),
        ({"threads": -1}, "threads"),
        ({"threads": 1 << 70}, "threads"),
        ({"chunk": 0}, "chunk"),
        ({"memory_budget": "lots"}, "memory_budget"),
        ({"memory_budget": -5}, "memory_budget"),
        ({"kernels": "abacus"}, "kernels"),
        ({"kv_type": "f64"}, "kv_type"),
        ({"gating": "maybe"}, "gating"),
        ({"cache_policy": "fifo"}, "cache_policy.*\"fifo\".*lru, cyclic"),
        ({"context_length": 1 << 40}, "context_length"),
        ({"lm_head": "half"}, "lm_head.*full, sparse"),
        ({"progress": 3}, "progress"),
    ],
)
def test_bad_options_of_a_model(model_path, options, word):
    with pytest.raises(InvalidArgument, match=word):
        Model(model_path, **options)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 64}, "seed"),
        ({"logit_bias": {0: float("nan")}}, "logit_bias"),
        ({"logit_bias": {1 << 31: 1.0}}, "logit_bias"),
        ({"logprobs": -1}, "logprobs"),
    ],
)
def test_bad_options_of_a_generation(model, options, word):
    with pytest.raises(InvalidArgument, match=word):
        model.generate(PROMPT, **{"max_tokens": 1, **options})


def test_wrong_types_and_unknown_keywords(model, model_path):
    with pytest.raises(TypeError, match="temprature"):
        model.generate(PROMPT, temprature=1.0)
    with pytest.raises(TypeError, match="thread"):
        Model(model_path, thread=1)
    with pytest.raises(TypeError):
        Model(model_path, 2)
    with pytest.raises(TypeError, match="memory_budget"):
        Model(model_path, memory_budget=[])
    with pytest.raises(TypeError, match="stop"):
        model.generate(PROMPT, stop=3)
    with pytest.raises(TypeError):
        model.generate(b"bytes")
    with pytest.raises(TypeError, match="ids"):
        model.detokenize("text")


@pytest.mark.parametrize(
    "messages",
    ["Hello", {"role": "user", "content": "x"}, ["Hello"], [{"role": "user"}], [{"role": "user", "content": 3}],
     [{"role": "user", "content": "x", "name": "y"}]],
)
def test_messages_of_the_wrong_form(model, messages):
    with pytest.raises(TypeError, match="argument 'messages'"):
        model.chat(messages)


def test_no_messages(model):
    with pytest.raises(InvalidArgument, match="messages"):
        model.chat([])


def test_ids_outside_the_vocabulary(model):
    for ids in ([model.vocab_size], [-1], [1 << 40]):
        with pytest.raises(InvalidArgument):
            model.logits(ids)
        with pytest.raises(InvalidArgument):
            model.detokenize(ids)


def test_nothing_to_continue(model):
    with pytest.raises(InvalidArgument, match="prompt"), model.session() as session:
        session.generate()


def test_context_overflow_changes_nothing(model_path):
    with Model(model_path, context_length=16) as model, model.session() as session:
        session.append("Hello")
        before = session.tokens
        with pytest.raises(smallthinker.ContextOverflow, match="16"):
            session.append(PROMPT * 50)
        assert session.tokens == before
        done = session.generate(max_tokens=None)
        assert done.finish_reason in ("context", "stop")


def test_use_after_close(model_path):
    model = Model(model_path)
    session = model.session()
    session.append(PROMPT)
    stream = model.stream(PROMPT, max_tokens=50)
    next(stream)
    model.close()
    for use in (
        lambda: model.generate(PROMPT),
        lambda: model.tokenize(PROMPT),
        model.stats,
        model.session,
        lambda: session.generate(),
        lambda: session.tokens,
        lambda: next(stream),
        model.__enter__,
    ):
        with pytest.raises(SmallThinkerError, match="closed"):
            use()


def test_closed_session(model):
    session = model.session()
    session.close()
    with pytest.raises(SmallThinkerError, match="session is closed"):
        session.append("x")


def test_session_of_an_unfinished_stream_is_taken(model):
    with model.session() as session:
        stream = session.stream(PROMPT, max_tokens=50)
        next(stream)
        with pytest.raises(SmallThinkerError, match="in use"):
            session.append("x")
        stream.close()
        assert next(stream, None) is None
        session.append("x")
        abandoned = session.stream(max_tokens=50)
        next(abandoned)
        del abandoned
        gc.collect()
        session.append("x")


def test_damaged_session_file(model, tmp_path):
    path = tmp_path / "session"
    with model.session() as session:
        session.append(PROMPT)
        session.evaluate()
        session.save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-20] ^= 1
    for damaged in (b"", whole[:50], whole[:-1], whole + b"x", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(smallthinker.ModelFormatError, match="session"):
            model.load_session(path)


def test_progress_that_raises_stops_the_load(model_path):
    def progress(done, total):
        raise KeyError("from the callback")

    with pytest.raises(KeyError, match="from the callback"):
        Model(model_path, progress=progress)


def test_convert_refuses(tmp_path):
    with pytest.raises(InvalidArgument, match="q4_0"):
        smallthinker.convert(tmp_path, tmp_path / "out.gguf", "q9_9")
    with pytest.raises(smallthinker.NotFound, match=r"config\.json"):
        smallthinker.convert(tmp_path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
