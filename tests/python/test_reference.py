"""Logits against the JAX reference of `examples/train`, which shares nothing with the engine but the weights."""

import json
import pathlib
import subprocess
import sys

import gguf
import numpy as np
import pytest

import checkpoint
import smallthinker

REFERENCE = pathlib.Path(__file__).parents[2] / "examples" / "train" / "reference.py"
TEXT = "Once upon a time there was a little dog who lived by the sea. What is 23 plus 45? The answer is 68. "


def reference_logits(directory, ids, out):
    command = [sys.executable, REFERENCE, directory, "--tokens", ",".join(map(str, ids)), "--out", out]
    subprocess.run(list(map(str, command)), check=True)
    return np.load(out).astype(np.float64)


ROUTING = """
import json, sys
import jax.numpy as jnp, numpy as np
sys.path.insert(0, sys.argv[1])
from reference import Reference

class Counting(Reference):
    def experts(self, layer, router, x):
        chosen = jnp.argsort(-router, axis=-1, stable=True)[:, : self.config["moe_num_active_primary_experts"]]
        used = np.zeros((len(x), self.config["moe_num_primary_experts"]), bool)
        np.put_along_axis(used, np.asarray(chosen), True, 1)
        gates = [np.asarray(x @ self.weight(layer, f"block_sparse_moe.experts.{e}.gate").T) for e in range(used.shape[1])]
        zeros = np.concatenate([(gate <= 0)[used[:, e]].ravel() for e, gate in enumerate(gates)])
        found["frequency"].append(used.mean(0).tolist())
        found["sparsity"].append(float(zeros.mean()))
        return super().experts(layer, router, x)

found = {"frequency": [], "sparsity": []}
Counting(sys.argv[2]).logits(json.loads(sys.argv[3]))
print(json.dumps(found))
"""


def engine_logits(path, ids, **options):
    with smallthinker.Model(str(path), **options) as model:
        return model.logits(ids)


def divergence(reference, ours):
    """KL(reference || ours) at every position."""
    def log_softmax(x):
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))
    p, q = log_softmax(reference), log_softmax(ours)
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.fixture(scope="module")
def trained(model_path, tmp_path_factory):
    """The shipped weights as an F32 checkpoint; token ids beyond the attention window; the reference's logits."""
    folder = tmp_path_factory.mktemp("trained")
    checkpoint.export(model_path, folder / "hf")
    with smallthinker.Model(model_path) as model:
        window = gguf.GGUFReader(model_path).fields["smallthinker.attention.sliding_window"].contents()
        ids = model.tokenize(TEXT * 40)[: window + 100]
    assert len(ids) == window + 100
    return folder, ids, reference_logits(folder / "hf", ids, folder / "reference.npy")


def test_f32_file_agrees_beyond_the_window(trained):
    folder, ids, reference = trained
    smallthinker.convert(str(folder / "hf"), str(folder / "f32.gguf"), type="f32")
    ours = engine_logits(folder / "f32.gguf", ids, kv_type="f32", chunk=128)
    worst = abs(ours - reference).max()
    print(f"F32: {len(ids)} positions, max abs difference {worst:.2e}")
    assert worst < 2e-3


def test_routing_profile(trained):
    folder, _, _ = trained
    path = folder / "f32.gguf"
    if not path.exists():
        smallthinker.convert(str(folder / "hf"), str(path), type="f32")
    with smallthinker.Model(str(path), kv_type="f32") as model:
        ids = model.tokenize(TEXT)
        found = smallthinker.routing_profile(model, TEXT)
        with pytest.raises(smallthinker.InvalidArgument, match="text"):
            smallthinker.routing_profile(model, "")
    command = [sys.executable, "-c", ROUTING, REFERENCE.parent, folder / "hf", json.dumps(ids)]
    want = json.loads(subprocess.run(list(map(str, command)), check=True, capture_output=True).stdout)
    assert found["tokens"] == len(ids)
    # A near tie may be chosen otherwise by one token.
    assert np.abs(np.array(found["frequency"]) - want["frequency"]).max() <= 1 / len(ids) + 1e-9
    assert np.allclose(np.sum(found["frequency"], axis=1), found["experts_used"])
    assert np.allclose(found["sparsity"], want["sparsity"], atol=2e-3)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_quantized_files_agree_with_their_own_weights(trained, kind, tmp_path):
    folder, ids, _ = trained
    ids = ids[:120]
    smallthinker.convert(str(folder / "hf"), str(tmp_path / "model.gguf"), type=kind)
    checkpoint.export(tmp_path / "model.gguf", tmp_path / "hf")
    reference = reference_logits(tmp_path / "hf", ids, tmp_path / "reference.npy")
    kl = divergence(reference, engine_logits(tmp_path / "model.gguf", ids))
    # The worst position may hold a near-tie of the router that rounding decides the other way.
    print(f"{kind}: median KL {np.median(kl):.2e}, worst {kl.max():.2e} at position {kl.argmax()}")
    assert np.median(kl) < 1e-3


def random_blocks(rng, kind, rows, cols):
    """Random weights of a type that the `gguf` package can only read: random codes under small scales."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows * cols // block, size), dtype=np.uint8)
    scale = lambda low, high: rng.uniform(low, high, len(data)).astype(np.float16).view(np.uint8).reshape(-1, 2)  # noqa: E731
    if kind == gguf.GGMLQuantizationType.Q6_K:
        data[:, 192:208] = rng.integers(-8, 9, (len(data), 16), dtype=np.int8).view(np.uint8)
        data[:, 208:210] = scale(2e-4, 5e-4)
    else:  # Q4_K, Q5_K: scale, minimum of minima, then 12 bytes of packed 6-bit scales and minima
        data[:, 0:2], data[:, 2:4] = scale(2e-4, 5e-4), scale(1e-3, 2e-3)
    return data.reshape(rows, cols // block * size)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_k_quants(name, tmp_path):
    """A file of random K-quant blocks: dequantized by the `gguf` package, computed by the reference."""
    kind, rng = gguf.GGMLQuantizationType[name], np.random.default_rng(3)
    layers, hidden, heads, ffn, experts = 2, 256, 4, 256, 4
    tokens = list(checkpoint_alphabet()) + ["<|im_end|>"]
    w = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "smallthinker")
    w.add_context_length(256); w.add_embedding_length(hidden); w.add_block_count(layers)  # noqa: E702
    w.add_head_count(heads); w.add_head_count_kv(2); w.add_key_length(64); w.add_value_length(64)  # noqa: E702
    w.add_feed_forward_length(ffn); w.add_expert_feed_forward_length(ffn)  # noqa: E702
    w.add_expert_count(experts); w.add_expert_used_count(2)  # noqa: E702
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    w.add_layer_norm_rms_eps(1e-6); w.add_rope_freq_base(10000.0)  # noqa: E702
    w.add_tokenizer_model("gpt2"); w.add_tokenizer_pre("qwen2")  # noqa: E702
    w.add_token_list(tokens); w.add_token_merges([]); w.add_token_types([1] * 256 + [3])  # noqa: E702
    w.add_eos_token_id(256)
    f32 = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    w.add_tensor("token_embd.weight", 0.1 * f32(257, hidden))
    w.add_tensor("output_norm.weight", 1 + 0.1 * f32(hidden))
    for i in range(layers):
        for n in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{n}.weight", 1 + 0.1 * f32(hidden))
        w.add_tensor(f"blk.{i}.ffn_gate_inp.weight", f32(experts, hidden))
        for n, rows in (("attn_q", 256), ("attn_k", 128), ("attn_v", 128), ("attn_output", hidden)):
            w.add_tensor(f"blk.{i}.{n}.weight", random_blocks(rng, kind, rows, 256), raw_dtype=kind)
        for n in ("gate", "up", "down"):
            stacked = random_blocks(rng, kind, experts * 256, 256).reshape(experts, 256, -1)
            w.add_tensor(f"blk.{i}.ffn_{n}_exps.weight", stacked, raw_dtype=kind)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()  # noqa: E702
    checkpoint.export(tmp_path / "model.gguf", tmp_path / "hf")
    ids = rng.integers(0, 256, 50).tolist()
    reference = reference_logits(tmp_path / "hf", ids, tmp_path / "reference.npy")
    kl = divergence(reference, engine_logits(tmp_path / "model.gguf", ids))
    print(f"{name}: logits of deviation {reference.std():.1f}, median KL {np.median(kl):.2e}, worst {kl.max():.2e}")
    assert reference.std() < 4, "a distribution of one token would hide differences"
    assert np.median(kl) < 1e-3


def checkpoint_alphabet():
    """The byte-level alphabet: printable bytes as themselves, the others from U+0100 on."""
    extra = 256
    for b in range(256):
        if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174:
            yield chr(b)
        else:
            yield chr(extra)
            extra += 1
