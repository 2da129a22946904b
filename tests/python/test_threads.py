"""Threads: the GIL is free while the engine works, sessions run at once, misuse is an error and no deadlock."""

import threading
import time

import pytest

import smallthinker
from smallthinker import SmallThinkerError

PROMPTS = ("Once upon a time", "The quick brown fox", "One, two, three")


def in_threads(*works):
    """Runs all at once; returns their results, or the exception of each that failed."""
    results = [None] * len(works)

    def run(i, work):
        try:
            results[i] = work()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_python_runs_while_the_engine_works(model, long_prompt):
    """Ticks of a Python thread arrive during one call of the engine, not only before and after."""
    finished = threading.Event()
    ticks = []

    def count():
        while not finished.wait(0.002):
            ticks.append(time.monotonic())

    counter = threading.Thread(target=count)
    counter.start()
    try:
        with model.session() as session:
            session.append(long_prompt)
            began = time.monotonic()
            session.evaluate()
            ended = time.monotonic()
    finally:
        finished.set()
        counter.join()
    inside = [began, *(t for t in ticks if began < t < ended), ended]
    assert len(inside) > 10
    longest = max(b - a for a, b in zip(inside, inside[1:]))
    assert longest < (ended - began) / 2, f"Python stood still for {longest:.2f} of {ended - began:.2f} s"


def test_sessions_at_once_say_what_they_say_alone(model):
    options = {"max_tokens": 24, "temperature": 0.8, "seed": 7}
    alone = [model.generate(prompt, **options).tokens for prompt in PROMPTS]
    spans = []

    def work(prompt):
        began = time.monotonic()
        tokens = model.generate(prompt, **options).tokens
        spans.append((began, time.monotonic()))
        return tokens

    together = in_threads(*(lambda p=p: work(p) for p in PROMPTS))
    assert together == alone
    assert max(began for began, _ in spans) < min(ended for _, ended in spans), "the calls did not overlap"


def test_streams_of_two_sessions_interleave(model):
    alone = [model.generate(prompt, max_tokens=12).text for prompt in PROMPTS[:2]]
    streams = [model.stream(prompt, max_tokens=12) for prompt in PROMPTS[:2]]
    texts = ["", ""]
    going = {0, 1}
    while going:
        for i in sorted(going):
            piece = next(streams[i], None)
            if piece is None:
                going.discard(i)
            else:
                texts[i] += piece
    assert texts == alone


def test_one_session_in_two_threads_is_an_error(model, long_prompt):
    with model.session() as session:
        session.append(long_prompt)
        barrier = threading.Barrier(2)

        def work():
            barrier.wait()
            session.evaluate()

        outcomes = in_threads(work, work)
        assert sorted(o is None for o in outcomes) == [False, True]
        (refused,) = (o for o in outcomes if o is not None)
        assert isinstance(refused, SmallThinkerError)
        assert "in use" in str(refused)
        session.rewind(3)


def cancel_when_busy(session):
    """Cancels the work of another thread once it has begun."""
    while True:
        try:
            session.tokens  # noqa: B018 - raises while the session is in use
        except SmallThinkerError:
            session.cancel()
            return
        time.sleep(0.0005)


def test_cancel_in_prefill(model_path, model, long_prompt):
    with smallthinker.Model(model_path, chunk=8) as other, other.session() as session:
        session.append(long_prompt)
        outcomes = in_threads(session.evaluate, lambda: cancel_when_busy(session))
        assert isinstance(outcomes[0], smallthinker.Cancelled), outcomes
        session.rewind(4)
        assert session.generate(max_tokens=1).stats["prompt_tokens"] == 4


def test_cancel_in_decode(model):
    word = model.tokenize(" the")[0]
    with model.session() as session:
        stream = session.stream("Once", max_tokens=None, logit_bias={word: 1e9})
        got = 0

        def read():
            nonlocal got
            for _ in stream:
                got += 1

        def cancel():
            while got < 3:
                time.sleep(0.0005)
            stream.cancel()

        assert in_threads(read, cancel) == [None, None]
        assert stream.finish_reason == "cancelled"
        assert len(session.tokens) < model.context_length
        stream = session.stream(max_tokens=2, logit_bias={word: 1e9})
        assert "".join(stream) == model.detokenize([word, word])


def test_close_while_others_work(model_path, long_prompt):
    model = smallthinker.Model(model_path, chunk=8)
    session = model.session()
    session.append(long_prompt)

    def close():
        while True:
            try:
                session.tokens  # noqa: B018
            except SmallThinkerError:
                model.close()
                return

    outcomes = in_threads(session.evaluate, close)
    assert isinstance(outcomes[0], smallthinker.Cancelled), outcomes
    with pytest.raises(SmallThinkerError, match="closed"):
        session.evaluate()
