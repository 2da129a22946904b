"""pack: what another reader finds in a packed file, and that it gives the same text as the plain one."""

import gguf
import numpy as np
import pytest
from test_cli import output

import smallthinker
from smallthinker import Model


@pytest.fixture(scope="module")
def packed(model_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("pack") / "packed.gguf"
    calls = []
    report = smallthinker.pack(model_path, out, lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (report["data_bytes"], report["data_bytes"])
    assert report["experts"] == smallthinker.plan(model_path)["experts"]
    assert [file.name for file in out.parent.iterdir()] == ["packed.gguf"]
    return out


def test_the_gguf_package_lists_it(model_path, packed):
    plain, reader = gguf.GGUFReader(model_path), gguf.GGUFReader(packed)
    layers = sum(t.name.endswith(".ffn_gate_exps.weight") for t in plain.tensors)
    originals = {t.name: t for t in plain.tensors}
    experts = [t for t in reader.tensors if t.name.endswith(".ffn_exps_packed.weight")]
    assert len(experts) == layers
    assert len(reader.tensors) == len(plain.tensors) - 2 * layers
    assert reader.alignment == 4096
    for tensor in reader.tensors:
        assert tensor.data_offset % 4096 == 0
        if tensor.name in originals:
            original = originals[tensor.name]
            assert tensor.tensor_type == original.tensor_type
            np.testing.assert_array_equal(tensor.data, original.data)
    for tensor in experts:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.I8
        assert tensor.shape[0] % 4096 == 0
    assert reader.get_field("smallthinker.pack.version").contents() == 1
    types = reader.get_field("smallthinker.pack.down.types").contents()
    assert types == [originals[f"blk.{i}.ffn_down_exps.weight"].tensor_type.name for i in range(layers)]
    ours = {key for key in reader.fields if key.startswith("smallthinker.pack.")} | {"general.alignment"}
    for key, field in plain.fields.items():
        if not key.startswith("GGUF.") and key not in ours:
            assert reader.get_field(key).contents() == field.contents(), key


def test_same_text_in_memory_and_streamed(model, model_path, packed):
    prompt = "Once upon a time"
    expected = model.generate(prompt, max_tokens=40).tokens
    logits = model.logits(model.tokenize(prompt))
    plan = smallthinker.plan(packed)
    budgets = {"all": None, "few": plan["floor"] + 8 * plan["expert_slot"]}
    for name, budget in budgets.items():
        with Model(packed, memory_budget=budget) as other:
            assert other.generate(prompt, max_tokens=40).tokens == expected, name
            np.testing.assert_array_equal(other.logits(other.tokenize(prompt)), logits)
            streams = other.plan()["expert_slots"] < other.plan()["experts"]
            assert streams == (name == "few")
            assert (other.stats()["expert_cache"]["evictions"] > 0) == streams
    # A trace of routing is the same too.
    a, b = packed.with_name("a.trace"), packed.with_name("b.trace")
    with Model(packed) as other:
        smallthinker.trace(model, prompt, a, max_tokens=8)
        smallthinker.trace(other, prompt, b, max_tokens=8)
    hits = [[r["hits"] for r in smallthinker.policies(path, budgets=["50%"])["replays"]] for path in (a, b)]
    assert hits[0] == hits[1]


def test_command_line(model_path, packed, tmp_path):
    out = tmp_path / "again.gguf"
    assert "experts" in output("pack", model_path, out)
    assert out.read_bytes() == packed.read_bytes()
    text = output("inspect", out)
    for words in ("smallthinker.pack.version = 1", "lanes-neurons", "blk.0.ffn_exps_packed.weight", " I8 "):
        assert words in text
    assert "experts kept in memory" in output("plan", out)
    story = ["generate", "Once upon a time", "-n", 8]
    assert output(*story, "--model", out) == output(*story, "--model", model_path)


def test_what_is_refused(model_path, packed, tmp_path):
    out = tmp_path / "out.gguf"
    with pytest.raises(smallthinker.ModelFormatError, match="packed already"):
        smallthinker.pack(packed, out)
    with pytest.raises(smallthinker.InvalidArgument, match="another file"):
        smallthinker.pack(model_path, model_path)
    with pytest.raises(smallthinker.NotFound):
        smallthinker.pack(tmp_path / "missing.gguf", out)
    with pytest.raises(smallthinker.ModelFormatError, match="magic"):
        smallthinker.pack(__file__, out)

    def progress(done, total):
        raise KeyError("from the callback")

    with pytest.raises(KeyError, match="from the callback"):
        smallthinker.pack(model_path, out, progress)
    assert list(tmp_path.iterdir()) == []
