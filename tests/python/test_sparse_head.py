"""The sparse LM head: the full head's choices from a part of its rows, with a sketch and with a trained predictor."""

import json

import gguf
import numpy as np
import pytest
from test_cli import output, smallthinker

import smallthinker as package
from smallthinker import InvalidArgument, Model

PROMPTS = ["Once upon a time", "The little fox was", "One day, Tom and his sister", "It was a rainy morning"]


SKETCH = "smallthinker.head_sketch."


def rewritten(source, target, *, tensors=(), values=None):
    """A copy of a GGUF file without a sketch of its head, but with these tensors of Q4_0 bytes and these values of a sketch."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "smallthinker")
    for key, field in reader.fields.items():
        if key.startswith(("GGUF.", SKETCH)) or key == "general.architecture":
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=sub_type)
    for key, value in (values or {}).items():
        if isinstance(value, float):
            writer.add_float32(SKETCH + key, value)
        else:
            kind = gguf.GGUFValueType.UINT8 if value.dtype == np.uint8 else gguf.GGUFValueType.FLOAT32
            writer.add_key_value(SKETCH + key, value.ravel().tolist(), gguf.GGUFValueType.ARRAY, sub_type=kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, data in tensors:
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def plain_path(model_path, tmp_path_factory):
    """The model without what its file says of its head."""
    path = tmp_path_factory.mktemp("plain") / "model.gguf"
    rewritten(model_path, path)
    return path


@pytest.fixture(scope="module", params=["file", "sketch"])
def sparse_path(request, model_path, plain_path):
    """The shipped model with the sketch that was trained, and without: one is made then."""
    return model_path if request.param == "file" else plain_path


@pytest.fixture(scope="module")
def sparse(sparse_path):
    with Model(sparse_path, lm_head="sparse") as model:
        yield model


def test_greedy_text_is_that_of_the_full_head(model, sparse):
    for prompt in PROMPTS:
        full, found = model.generate(prompt, max_tokens=120), sparse.generate(prompt, max_tokens=120)
        assert found.text == full.text
        assert found.stats["lm_head"] == "sparse" and full.stats["lm_head"] == "full"
        assert full.stats["head_rows_per_token"] == model.vocab_size
        assert 16 <= found.stats["head_rows_per_token"] < model.vocab_size / 4
        bytes_read = [g.stats["stages"]["head"]["decode_bytes_per_token"] for g in (full, found)]
        assert bytes_read[1] < bytes_read[0] / 3
        again = sparse.generate(prompt, max_tokens=120, lm_head="full")
        assert (again.text, again.stats["lm_head"]) == (full.text, "full")


def test_what_is_computed_does_not_depend_on_threads_or_chunks(sparse_path, sparse):
    options = {"max_tokens": 60, "temperature": 1.0, "seed": 5}
    want = sparse.generate(PROMPTS[0], **options)
    for other in ({"threads": 1}, {"threads": 3, "chunk": 1}):
        with Model(sparse_path, lm_head="sparse", **other) as model:
            found = model.generate(PROMPTS[0], **options)
            assert found.tokens == want.tokens
            assert found.stats["head_rows_per_token"] == want.stats["head_rows_per_token"]


def test_memory_counts(sparse_path, model, sparse):
    plans = [package.plan(sparse_path, lm_head=head) for head in ("full", "sparse")]
    assert plans[0]["lm_head"] == 0 < plans[1]["lm_head"]
    assert plans[1]["floor"] - plans[0]["floor"] == plans[1]["lm_head"]
    with Model(sparse_path, memory_budget=plans[1]["everything"], lm_head="sparse") as other:
        used = other.stats()["budget_used"]
    with Model(sparse_path, memory_budget=plans[1]["everything"]) as other:
        assert used - other.stats()["budget_used"] == plans[1]["lm_head"]
    trained = any(key.startswith(SKETCH) for key in package.inspect(sparse_path)["metadata"])
    assert sparse.stats()["head_predictor"] == ("file" if trained else "sketch")
    assert sparse.stats()["lm_head"] == "sparse"
    assert model.stats()["head_predictor"] is None and model.stats()["lm_head"] == "full"


def test_tokens_with_a_bias_are_computed(model, sparse):
    unlikely = int(np.argmin(model.logits(model.tokenize(PROMPTS[0]))[-1]))
    found = sparse.generate(PROMPTS[0], max_tokens=1, logit_bias={unlikely: 1000.0})
    assert found.tokens == [unlikely]


def test_logprobs_are_from_the_full_head(model, sparse):
    found, full = (m.generate(PROMPTS[0], max_tokens=5, logprobs=3) for m in (sparse, model))
    assert found.stats["lm_head"] == "full"
    assert [(p.token, p.logprob, p.top) for p in found.logprobs] == [(p.token, p.logprob, p.top) for p in full.logprobs]
    ids = model.tokenize(PROMPTS[1])
    assert np.array_equal(sparse.logits(ids), model.logits(ids))
    assert package.perplexity(sparse, PROMPTS[1]) == package.perplexity(model, PROMPTS[1])


def test_comparison(model, sparse):
    own = [p + model.generate(p, max_tokens=200, temperature=0.8, seed=1).text for p in PROMPTS]
    text = "\n\n".join(own)
    found = package.heads(sparse, text, shares=[0.01, 0.05, 0.2, 1.0])
    assert (found["predictor"], found["vocab"]) == (sparse.stats()["head_predictor"], model.vocab_size)
    assert found["positions"] == len(model.tokenize(text))
    shares = found["shares"]
    for less, more in zip(shares, shares[1:]):
        assert less["top1"] <= more["top1"] and less["recall20"] < more["recall20"] and less["kl"] > more["kl"]
    assert [round(s["rows"]) for s in shares] == [round(s * model.vocab_size) for s in (0.01, 0.05, 0.2, 1.0)]
    assert (shares[-1]["top1"], shares[-1]["recall20"], shares[-1]["worst_kl"]) == (1, 1, pytest.approx(0, abs=1e-12))
    assert found["sparse"]["top1"] >= 0.995
    assert found["sparse"]["bytes"] < 0.3
    rows = found["sparse"]["rows"] / found["vocab"] + found["predictor_bytes"] / found["head_bytes"]
    assert found["sparse"]["bytes"] == pytest.approx(rows)
    with pytest.raises(InvalidArgument, match="sparse"):
        package.heads(model, text)
    for options in ({"shares": [0.0]}, {"shares": [1.1]}, {"context": 0}):
        with pytest.raises(InvalidArgument, match=next(iter(options))):
            package.heads(sparse, text, **options)
    with pytest.raises(InvalidArgument, match="text"):
        package.heads(sparse, "")


def test_trained_predictor_of_the_file(model, model_path, tmp_path):
    """Its first direction is that of the rows' mean, along which all states lie on one side; it lets a set of rows through."""
    head = next(t for t in gguf.GGUFReader(model_path).tensors if t.name in ("output.weight", "token_embd.weight"))
    rows = gguf.quants.dequantize(head.data, head.tensor_type)
    vocab, hidden = rows.shape
    ids = model.tokenize(PROMPTS[0])
    side = np.sign(model.logits(ids).mean(axis=1))
    assert np.all(side == side[0]), "the test needs states on one side"
    rank = 32
    down, up = np.zeros((rank, hidden), np.float32), np.zeros((vocab, rank), np.float32)
    down[0] = rows.mean(axis=0)
    path = tmp_path / "model.gguf"

    def predictor(chosen):
        up[:, 0] = np.where(chosen, side[0], -side[0])
        values = np.concatenate([down.ravel(), up.ravel()])
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
        rewritten(model_path, path, tensors=[("lm_head_profiler.weight", data)])
        return values

    few = np.arange(vocab) % 16 == 1
    predictor(few)
    banned = {int(i): -np.inf for i in np.flatnonzero(~few)}
    want = model.generate(PROMPTS[0], max_tokens=12)
    with Model(path, lm_head="sparse") as predicted, Model(path) as full:
        assert predicted.stats()["head_predictor"] == "file"
        assert full.generate(PROMPTS[0], max_tokens=12).tokens == want.tokens
        found = predicted.generate(PROMPTS[0], max_tokens=12)
        assert found.tokens == model.generate(PROMPTS[0], max_tokens=12, logit_bias=banned).tokens != want.tokens
        assert found.stats["head_rows_per_token"] == np.count_nonzero(few)
    # Where it lets most rows through, all are computed.
    values = predictor(np.arange(vocab) % 7 != 0)
    with Model(path, lm_head="sparse") as predicted:
        found = predicted.generate(PROMPTS[0], max_tokens=2)
        assert (found.tokens, found.stats["head_rows_per_token"]) == (want.tokens[:2], vocab)
    for wrong in (values[:-32], values[: 31 * (hidden + vocab) // 32 * 32]):
        data = gguf.quants.quantize(wrong, gguf.GGMLQuantizationType.Q4_0)
        rewritten(model_path, path, tensors=[("lm_head_profiler.weight", data)])
        with pytest.raises(package.ModelFormatError, match="shape of lm_head_profiler.weight"):
            Model(path, lm_head="sparse")
        Model(path).close()


def test_trained_sketch_of_the_file(model, model_path, tmp_path):
    """As above: all states lie on one side of its first direction, and rows differ in one sign, so that estimates are far above or
    far below all logits."""
    head = next(t for t in gguf.GGUFReader(model_path).tensors if t.name in ("output.weight", "token_embd.weight"))
    rows = gguf.quants.dequantize(head.data, head.tensor_type)
    vocab, hidden = rows.shape
    side = np.sign(model.logits(model.tokenize(PROMPTS[0])).mean(axis=1))
    assert np.all(side == side[0]), "the test needs states on one side"
    directions = np.zeros((32, hidden), np.float32)
    directions[0] = side[0] * rows.mean(axis=0)
    path = tmp_path / "model.gguf"

    def sketch(chosen, margin=0.0, scales=np.full(vocab, 1e6, np.float32), mean=0.0):
        signs = np.ones((vocab, 32), bool)
        signs[:, 0] = chosen
        return {"directions": directions, "signs": np.packbits(signs, axis=1, bitorder="little"),
                "scales": scales, "mean": np.float32(mean) * directions[0], "margin": margin}

    few = np.arange(vocab) % 16 == 1
    banned = {int(i): -np.inf for i in np.flatnonzero(~few)}
    want = model.generate(PROMPTS[0], max_tokens=12, logit_bias=banned)
    rewritten(model_path, path, values=sketch(few))
    with Model(path, lm_head="sparse") as found:
        assert found.stats()["head_predictor"] == "file"
        found = found.generate(PROMPTS[0], max_tokens=12)
        assert (found.tokens, found.stats["head_rows_per_token"]) == (want.tokens, np.count_nonzero(few))
    # The mean takes the rows with a tenth of the scale out; a wide margin lets all in.
    tenth = np.where(np.arange(vocab) % 32 == 1, 1e6, 1e5).astype(np.float32)
    for margin, mean, count in ((0.0, 0.0, np.count_nonzero(few)), (1e-3, -5e5, np.count_nonzero(tenth == 1e6)), (1e10, -5e5, vocab)):
        rewritten(model_path, path, values=sketch(few, margin, tenth, mean))
        with Model(path, lm_head="sparse") as found:
            assert found.generate(PROMPTS[0], max_tokens=4).stats["head_rows_per_token"] == count

    wide = np.where(np.arange(vocab) % 32 == 1, 1e10, 1e-30).astype(np.float32)
    rewritten(model_path, path, values=sketch(few, 0.0, wide, -1e6))
    with Model(path, lm_head="sparse") as found:
        assert found.generate(PROMPTS[0], max_tokens=4).stats["head_rows_per_token"] == np.count_nonzero(wide > 1)

    whole = sketch(few)
    wrong = {
        "directions": [directions[:, 1:], directions[:8], directions * np.float32("nan")],
        "signs": [whole["signs"][1:], whole["signs"][:, 1:]],
        "scales": [whole["scales"][1:], -whole["scales"], whole["scales"] * np.float32("inf")],
        "mean": [whole["mean"][1:], *(np.full(hidden, v, np.float32) for v in (np.inf, np.nan))],
        "margin": [-1.0, float("nan")],
    }
    for key, values in wrong.items():
        for value in [*values, None]:
            changed = {k: value if k == key else v for k, v in whole.items()}
            rewritten(model_path, path, values={k: v for k, v in changed.items() if v is not None})
            with pytest.raises(package.ModelFormatError, match=f"head_sketch.{key}"):
                Model(path, lm_head="sparse")
            Model(path).close()  # the full head has no use for it


def test_errors(model, model_path, sparse):
    with pytest.raises(InvalidArgument, match='lm_head.*"half".*full, sparse'):
        Model(model_path, lm_head="half")
    with pytest.raises(InvalidArgument, match="lm_head.*opened without"):
        model.generate(PROMPTS[0], max_tokens=1, lm_head="sparse")
    with pytest.raises(InvalidArgument, match="lm_head"):
        sparse.generate(PROMPTS[0], max_tokens=1, lm_head="half")


def test_commands(model, sparse_path, sparse, tmp_path):
    done = smallthinker("generate", PROMPTS[0], "--model", sparse_path, "-n", 20, "--lm-head", "sparse", "--stats")
    assert done.stdout == model.generate(PROMPTS[0], max_tokens=20).text + "\n"
    assert "rows of the head" in done.stderr
    path = tmp_path / "text"
    path.write_text(" ".join(PROMPTS), encoding="utf-8")
    found = json.loads(output("heads", path, "--model", sparse_path, "--shares", "1,20%", "--json"))
    assert found == package.heads(sparse, " ".join(PROMPTS), shares=[0.01, 0.2])
    lines = output("heads", path, "--model", sparse_path, "--shares", "1,20").splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["rows", "sparse", "1", "20"]
    done = smallthinker("heads", path, "--model", sparse_path, "--shares", "many")
    assert done.returncode == 1 and "shares" in done.stderr
    plan = json.loads(output("plan", sparse_path, "--lm-head", "sparse", "--json"))
    assert plan["lm_head"] > 0
