"""Quantizing GGUF files, against the quantizer of the gguf package."""

import gguf
import numpy as np
import pytest
from test_cli import output, smallthinker

import smallthinker as package
from smallthinker import InvalidArgument, Model, ModelFormatError

TYPES = gguf.GGMLQuantizationType


def rewrite(source, target, kind, more=()):
    """A copy with its matrices dequantized to a float type, and other metadata."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "smallthinker")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        value_type = field.types[0]
        sub_type = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), value_type, sub_type=sub_type)
    for key, value in more:
        writer.add_uint32(key, value)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
        if values.ndim > 1 and "gate_inp" not in tensor.name:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def metadata(path):
    fields = gguf.GGUFReader(path).fields.items()
    return {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("target", ["Q8_0", "Q4_0"])
def test_weights_are_those_of_another_quantizer(model_path, tmp_path, kind, target):
    source, out = tmp_path / "source.gguf", tmp_path / "out.gguf"
    rewrite(model_path, source, TYPES[kind], [("general.file_type", 1), ("split.count", 1)])
    calls = []
    report = package.quantize(source, out, target.lower(), lambda done, total: calls.append((done, total)))
    before = {t.name: t for t in gguf.GGUFReader(source).tensors}
    after = gguf.GGUFReader(out).tensors
    assert [t.name for t in after] == list(before)
    quantized = 0
    for tensor in after:
        old = before[tensor.name]
        assert tensor.shape.tolist() == old.shape.tolist()
        values = gguf.quants.dequantize(old.data, old.tensor_type)
        if tensor.name.endswith("norm.weight") or "gate_inp" in tensor.name:
            assert tensor.tensor_type == TYPES.F32
            np.testing.assert_array_equal(tensor.data.ravel(), values.ravel())
        else:
            assert tensor.tensor_type == TYPES[target], tensor.name
            # Plus zero: a block of zeros gets the scale -0 from ggml whatever its zeros' signs, from this package by them.
            want = gguf.quants.quantize(values + np.float32(0), TYPES[target])
            np.testing.assert_array_equal(tensor.data.ravel(), want.ravel(), err_msg=tensor.name)
            quantized += 1
    assert (report["tensors"], report["quantized"], report["fallbacks"]) == (len(after), quantized, [])
    assert report["data_bytes"] == sum(int(t.n_bytes) for t in after) == calls[-1][0] == calls[-1][1]
    assert report["source_bytes"] == sum(int(t.n_bytes) for t in before.values())
    expected = {k: v for k, v in metadata(source).items() if not k.startswith("split.")}
    expected.update({"general.file_type": {"Q8_0": 7, "Q4_0": 2}[target], "general.quantization_version": 2})
    assert metadata(out) == expected


def test_a_q4_0_model_survives_the_way_through_f32(model, model_path, tmp_path):
    """Quantizing what was quantized gives the same codes: the largest weight of a block keeps its code."""
    source, out = tmp_path / "source.gguf", tmp_path / "out.gguf"
    rewrite(model_path, source, TYPES.F32)
    said = output("quantize", source, out, "--type", "q4_0")
    assert "tensors quantized" in said
    ids = model.tokenize("Once upon a time there was a little fox")
    with Model(out) as again:
        assert np.array_equal(again.logits(ids), model.logits(ids))
    # The file may be replaced by itself; what is quantized already stays as it is.
    content = out.read_bytes()
    report = package.quantize(out, out, "q4_0")
    assert report["quantized"] == 0
    assert out.read_bytes() == content


def test_8_bits_lose_less_than_4(model_path, tmp_path):
    source = tmp_path / "source.gguf"
    rewrite(model_path, source, TYPES.F32)
    noisy = tmp_path / "noisy.gguf"
    # Weights that are not on the grid of 4 bits.
    reader = gguf.GGUFReader(source, "r+")
    rng = np.random.default_rng(1)
    for tensor in reader.tensors:
        if "exps" in tensor.name or "attn_" in tensor.name and "norm" not in tensor.name:
            tensor.data[...] *= rng.uniform(0.95, 1.05, tensor.data.shape).astype(np.float32)
    reader.data.flush()
    text = "Once upon a time there was a little fox who lived in a wood."
    with Model(source) as exact:
        ids = exact.tokenize(text)
        want = exact.logits(ids)
    weights, logits = {}, {}
    for kind in ("q8_0", "q4_0"):
        package.quantize(source, noisy, kind)
        found = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(noisy).tensors}
        weights[kind] = np.mean([np.abs(found[t.name] - t.data).mean() for t in reader.tensors if "exps" in t.name])
        with Model(noisy) as model:
            logits[kind] = np.abs(model.logits(ids) - want).mean()
    assert 0 < weights["q8_0"] < weights["q4_0"] / 4
    # Activations of 8 bits are part of both.
    assert 0 < logits["q8_0"] < logits["q4_0"]


def test_errors(model_path, tmp_path):
    out = tmp_path / "out.gguf"
    with pytest.raises(InvalidArgument, match="type.*q8_0, q4_0"):
        package.quantize(model_path, out, "f16")
    with pytest.raises(ModelFormatError, match="Q4_0.*quantized once only"):
        package.quantize(model_path, out, "q8_0")
    with pytest.raises(package.NotFound):
        package.quantize(tmp_path / "none.gguf", out)
    source = tmp_path / "source.gguf"
    rewrite(model_path, source, TYPES.F32)
    reader = gguf.GGUFReader(source, "r+")
    damaged = next(t for t in reader.tensors if t.name == "blk.1.attn_q.weight")
    damaged.data[3, 5] = np.nan
    reader.data.flush()
    with pytest.raises(ModelFormatError, match="blk.1.attn_q.weight.*NaN"):
        package.quantize(source, out)

    def stop(done, total):
        raise KeyError("stop")

    with pytest.raises(KeyError):
        package.quantize(source, out, "q8_0", stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source.gguf"]
    done = smallthinker("quantize", model_path, out, "--type", "q8_0")
    assert done.returncode == 1 and "Q4_0" in done.stderr
