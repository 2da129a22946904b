"""The sparse LM head: the full head's choices from a part of its rows, with a sketch and with a trained predictor."""

import json

import gguf
import numpy as np
import pytest
from test_cli import output, smallthinker

import smallthinker as package
from smallthinker import InvalidArgument, Model

PROMPTS = ["Once upon a time", "The little fox was", "One day, Tom and his sister", "It was a rainy morning"]


@pytest.fixture(scope="module")
def sparse(model_path):
    with Model(model_path, lm_head="sparse") as model:
        yield model


def test_greedy_text_is_that_of_the_full_head(model, sparse):
    for prompt in PROMPTS:
        full, found = model.generate(prompt, max_tokens=120), sparse.generate(prompt, max_tokens=120)
        assert found.text == full.text
        assert found.stats["lm_head"] == "sparse" and full.stats["lm_head"] == "full"
        assert full.stats["head_rows_per_token"] == model.vocab_size
        assert 64 <= found.stats["head_rows_per_token"] < model.vocab_size / 4
        bytes_read = [g.stats["stages"]["head"]["decode_bytes_per_token"] for g in (full, found)]
        assert bytes_read[1] < bytes_read[0] / 3
        again = sparse.generate(prompt, max_tokens=120, lm_head="full")
        assert (again.text, again.stats["lm_head"]) == (full.text, "full")


def test_what_is_computed_does_not_depend_on_threads_or_chunks(model_path, sparse):
    options = {"max_tokens": 60, "temperature": 1.0, "seed": 5}
    want = sparse.generate(PROMPTS[0], **options)
    for other in ({"threads": 1}, {"threads": 3, "chunk": 1}):
        with Model(model_path, lm_head="sparse", **other) as model:
            found = model.generate(PROMPTS[0], **options)
            assert found.tokens == want.tokens
            assert found.stats["head_rows_per_token"] == want.stats["head_rows_per_token"]


def test_memory_counts(model_path, model, sparse):
    plans = [package.plan(model_path, lm_head=head) for head in ("full", "sparse")]
    assert plans[0]["lm_head"] == 0 < plans[1]["lm_head"]
    assert plans[1]["floor"] - plans[0]["floor"] == plans[1]["lm_head"]
    with Model(model_path, memory_budget=plans[1]["everything"], lm_head="sparse") as other:
        used = other.stats()["budget_used"]
    with Model(model_path, memory_budget=plans[1]["everything"]) as other:
        assert used - other.stats()["budget_used"] == plans[1]["lm_head"]
    assert sparse.stats()["head_predictor"] == "sketch" and sparse.stats()["lm_head"] == "sparse"
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
    text = PROMPTS[0] + model.generate(PROMPTS[0], max_tokens=200, temperature=0.8, seed=1).text
    found = package.heads(sparse, text, shares=[0.01, 0.05, 0.2, 1.0])
    assert (found["predictor"], found["vocab"]) == ("sketch", model.vocab_size)
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


def with_tensor(source, target, name, data):
    """A copy of a GGUF file with one tensor of Q4_0 bytes more."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "smallthinker")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
        with_tensor(model_path, path, "lm_head_profiler.weight", data)
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
        with_tensor(model_path, path, "lm_head_profiler.weight", data)
        with pytest.raises(package.ModelFormatError, match="shape of lm_head_profiler.weight"):
            Model(path, lm_head="sparse")
        Model(path).close()


def test_errors(model, model_path, sparse):
    with pytest.raises(InvalidArgument, match='lm_head.*"half".*full, sparse'):
        Model(model_path, lm_head="half")
    with pytest.raises(InvalidArgument, match="lm_head.*opened without"):
        model.generate(PROMPTS[0], max_tokens=1, lm_head="sparse")
    with pytest.raises(InvalidArgument, match="lm_head"):
        sparse.generate(PROMPTS[0], max_tokens=1, lm_head="half")


def test_commands(model, model_path, sparse, tmp_path):
    done = smallthinker("generate", PROMPTS[0], "--model", model_path, "-n", 20, "--lm-head", "sparse", "--stats")
    assert done.stdout == model.generate(PROMPTS[0], max_tokens=20).text + "\n"
    assert "rows of the head" in done.stderr
    path = tmp_path / "text"
    path.write_text(" ".join(PROMPTS), encoding="utf-8")
    found = json.loads(output("heads", path, "--model", model_path, "--shares", "1,20%", "--json"))
    assert found == package.heads(sparse, " ".join(PROMPTS), shares=[0.01, 0.2])
    lines = output("heads", path, "--model", model_path, "--shares", "1,20").splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["rows", "sparse", "1", "20"]
    done = smallthinker("heads", path, "--model", model_path, "--shares", "many")
    assert done.returncode == 1 and "shares" in done.stderr
    plan = json.loads(output("plan", model_path, "--lm-head", "sparse", "--json"))
    assert plan["lm_head"] > 0
