"""Perplexity against sums over the model's own logits, in double precision."""

import json
import math

import numpy as np
import pytest
from test_cli import output, smallthinker

import smallthinker as package
from smallthinker import InvalidArgument, Model

TEXT = "Once upon a time there was a little fox. It lived in a wood with its mother, and it liked to swim. " * 6


def log_softmax(logits):
    logits = logits.astype(np.float64)
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def expected(model, text, context, stride):
    """The protocol, window by window: (nats, tokens, bytes, windows)."""
    ids = model.tokenize(text)
    nats, windows, scored = 0.0, 0, 1
    for start in range(0, len(ids), stride):
        window = ids[start : start + context]
        table = log_softmax(model.logits(window))
        nats -= sum(table[i - start - 1, ids[i]] for i in range(scored, start + len(window)))
        windows, scored = windows + 1, start + len(window)
        if scored == len(ids):
            break
    rest = len(text.encode()) - len(model.detokenize(ids[:1]).encode())
    return nats, len(ids) - 1, rest, windows


@pytest.mark.parametrize(("context", "stride"), [(64, 32), (64, 63), (50, 7), (2, 1), (128, 100), (512, None)])
def test_every_token_is_scored_once_with_its_past(model, context, stride):
    found = package.perplexity(model, TEXT, context=context, stride=stride)
    nats, tokens, count, windows = expected(model, TEXT, context, stride or context // 2)
    assert (found["tokens"], found["bytes"], found["windows"]) == (tokens, count, windows)
    assert (found["context"], found["stride"], found["bos"]) == (context, stride or context // 2, False)
    assert found["nats"] == pytest.approx(nats, rel=1e-9)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-9)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / count, rel=1e-9)
    assert found["bits_per_token"] == pytest.approx(nats / math.log(2) / tokens, rel=1e-9)


def test_figures_do_not_depend_on_threads_or_chunks(model_path, model):
    want = package.perplexity(model, TEXT, context=100, stride=60)
    for options in ({"threads": 1}, {"threads": 3, "chunk": 7}):
        with Model(model_path, **options) as other:
            assert package.perplexity(other, TEXT, context=100, stride=60) == want


def test_the_past_helps(model):
    story = "Once upon a time" + model.generate("Once upon a time", max_tokens=150, temperature=0.9, seed=3).text
    near, far = (package.perplexity(model, story, context=n, stride=1)["bits_per_byte"] for n in (4, 64))
    assert far < near - 0.2


def test_what_kv_types_take_and_lose(model_path):
    """Bytes of 32 elements with their scale; bits of a text that the shipped model has an idea of."""
    kinds = {"f32": (128, 0), "f16": (64, 1e-3), "q8_0": (34, 5e-3), "q4_0": (18, 0.02)}
    unit = package.plan(model_path, kv_type="f32")["kv_full_context"] / 128
    with Model(model_path, kv_type="f32") as exact:
        want = package.perplexity(exact, TEXT)["bits_per_byte"]
    for kind, (size, loss) in kinds.items():
        assert package.plan(model_path, kv_type=kind)["kv_full_context"] == size * unit
        with Model(model_path, kv_type=kind) as other:
            found = package.perplexity(other, TEXT)["bits_per_byte"]
        print(f"{kind}: {found:.4f} bits per byte, {found / want - 1:+.2%}")
        assert abs(found / want - 1) <= loss


def test_defaults_and_progress(model):
    seen = []
    found = package.perplexity(model, TEXT, context=64, progress=lambda done, total: seen.append((done, total)))
    n = len(model.tokenize(TEXT))
    assert seen[0] == (64, n) and seen[-1] == (n, n) and len(seen) == found["windows"]
    assert package.perplexity(model, TEXT)["context"] == min(2048, model.context_length)


def test_errors(model):
    for options in ({"context": 1}, {"context": model.context_length + 1}, {"stride": 0}, {"context": 8, "stride": 8}):
        with pytest.raises(InvalidArgument, match=list(options)[-1]):
            package.perplexity(model, TEXT, **options)
    for text in ("", "a"):
        with pytest.raises(InvalidArgument, match="text"):
            package.perplexity(model, text)

    def stop(done, total):
        raise KeyError("stop")

    with pytest.raises(KeyError):
        package.perplexity(model, TEXT, context=16, progress=stop)


def test_command(model, model_path, tmp_path):
    path = tmp_path / "text"
    path.write_text(TEXT, encoding="utf-8")
    found = package.perplexity(model, TEXT, context=64, stride=16)
    options = ("--model", model_path, "--window", 64, "--stride", 16)
    assert json.loads(output("perplexity", path, *options, "--json")) == found
    assert json.loads(output("perplexity", "-", *options, "--json", input=TEXT)) == found
    said = output("perplexity", path, *options)
    assert f"{found['bits_per_byte']:.4f}" in said and f"{found['perplexity']:.4f}" in said and "no BOS" in said
    path.write_bytes(b"ab\xff")
    done = smallthinker("perplexity", path, "--model", model_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "byte 2 is not UTF-8" in done.stderr
