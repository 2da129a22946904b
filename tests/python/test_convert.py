"""convert: a checkpoint in the Hugging Face layout, made here with numpy, against the file read by the gguf package."""

import json
import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
import tokenizers

import smallthinker

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, EXPERTS, USED = 4, 64, 4, 2, 32, 32, 4, 2


def make_tokenizer(folder):
    """A byte-level BPE without merges."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(alphabet)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.normalizer = tokenizers.normalizers.NFC()
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return made.get_vocab_size()


def make_weights(vocab):
    """name -> float32 array, of every tensor of the layout."""
    rng = np.random.default_rng(7)
    shapes = {"model.embed_tokens.weight": (vocab, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = (HIDDEN,)
        shapes[at + "post_attention_layernorm.weight"] = (HIDDEN,)
        shapes[at + "self_attn.q_proj.weight"] = (HEADS * HEAD_DIM, HIDDEN)
        shapes[at + "self_attn.k_proj.weight"] = (KV_HEADS * HEAD_DIM, HIDDEN)
        shapes[at + "self_attn.v_proj.weight"] = (KV_HEADS * HEAD_DIM, HIDDEN)
        shapes[at + "self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        shapes[at + "block_sparse_moe.primary_router.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            inside = f"{at}block_sparse_moe.experts.{expert}."
            shapes[inside + "gate.weight"] = (FFN, HIDDEN)
            shapes[inside + "up.weight"] = (FFN, HIDDEN)
            shapes[inside + "down.weight"] = (HIDDEN, FFN)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def write_safetensors(path, tensors):
    """The format: length of a JSON header, the header, the data."""
    header, offset = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(array.tobytes())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder and weights of a small checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    vocab = make_tokenizer(folder)
    weights = make_weights(vocab)
    write_safetensors(folder / "model.safetensors", weights)
    layout = [0 if layer % 4 == 0 else 1 for layer in range(LAYERS)]
    config = {
        "architectures": ["SmallThinkerForCausalLM"],
        "model_type": "smallthinker",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "moe_ffn_hidden_size": FFN,
        "moe_num_primary_experts": EXPERTS,
        "moe_num_active_primary_experts": USED,
        "moe_primary_router_apply_softmax": False,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_layout": layout,
        "sliding_window_layout": layout,
        "sliding_window_size": 16,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "eos_token_id": vocab - 1,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, weights


def expected_tensors(weights):
    """The checkpoint's weights under their GGUF names."""
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm"}
    names |= {"post_attention_layernorm": "ffn_norm", "block_sparse_moe.primary_router": "ffn_gate_inp"}
    out = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    for layer in range(LAYERS):
        for theirs, ours in names.items():
            out[f"blk.{layer}.{ours}.weight"] = weights[f"model.layers.{layer}.{theirs}.weight"]
        for part in ("gate", "up", "down"):
            experts = [
                weights[f"model.layers.{layer}.block_sparse_moe.experts.{e}.{part}.weight"] for e in range(EXPERTS)
            ]
            out[f"blk.{layer}.ffn_{part}_exps.weight"] = np.stack(experts)
    return out


@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 0), ("f16", 1e-3), ("bf16", 4e-3), ("q8_0", 8e-3), ("q4_0", 0.13)])
def test_weights_arrive(checkpoint, tmp_path, kind, tolerance):
    """Tolerance is relative to the largest weight of a tensor; blocks have their own, smaller one."""
    folder, weights = checkpoint
    out = tmp_path / "model.gguf"
    calls = []
    report = smallthinker.convert(folder, out, kind, lambda done, total: calls.append((done, total)))
    expected = expected_tensors(weights)
    reader = gguf.GGUFReader(out)
    assert {t.name for t in reader.tensors} == set(expected)
    assert report["tensors"] == len(expected)
    assert report["parameters"] == sum(a.size for a in expected.values())
    assert calls[-1][0] == calls[-1][1] == report["data_bytes"]
    for tensor in reader.tensors:
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(expected[tensor.name].shape)
        if expected[tensor.name].ndim == 1 or "gate_inp" in tensor.name:
            assert tensor.tensor_type.name == "F32", tensor.name
        scale = np.abs(expected[tensor.name]).max()
        np.testing.assert_allclose(found, expected[tensor.name], rtol=0, atol=tolerance * scale, err_msg=tensor.name)


def test_converted_model_runs(checkpoint, tmp_path):
    folder, _ = checkpoint
    exact, small = tmp_path / "f32.gguf", tmp_path / "q8_0.gguf"
    smallthinker.convert(folder, exact, "f32")
    command = [sys.executable, "-m", "smallthinker", "convert", folder, small, "--type", "q8_0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tensors" in done.stdout
    text = "Hello, world! " * 3
    with smallthinker.Model(exact) as a, smallthinker.Model(small) as b:
        ids = a.tokenize(text)
        reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert ids == b.tokenize(text) == reference.encode(text).ids
        difference = np.abs(a.logits(ids) - b.logits(ids)).max()
        assert 0 < difference < 0.1 * np.abs(a.logits(ids)).max()


def test_damaged_checkpoint(checkpoint, tmp_path):
    folder, weights = checkpoint
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    missing = "model.layers.2.self_attn.k_proj.weight"
    write_safetensors(tmp_path / "model.safetensors", {n: w for n, w in weights.items() if n != missing})
    with pytest.raises(smallthinker.ModelFormatError, match=missing):
        smallthinker.convert(tmp_path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
