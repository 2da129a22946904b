"""A GGUF file as a Hugging Face directory, through the `gguf` package alone: what our engine reads, read by others."""

import json
import os

import gguf
import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "block_sparse_moe.primary_router",
}


def export(path, out):
    """Writes `out` with dequantized F32 weights, config and tokenizer."""
    reader = gguf.GGUFReader(str(path))
    kv = {k: f.contents() for k, f in reader.fields.items()}
    os.makedirs(out, exist_ok=True)
    save_file(dict(_tensors(reader)), os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    tied = all(t.name != "output.weight" for t in reader.tensors)
    for name, value in {
        "config.json": _config(kv, tied),
        "tokenizer_config.json": {"add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>",
                                  "chat_template": TEMPLATE},
    }.items():
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            json.dump(value, f)
    _tokenizer(kv).save(os.path.join(out, "tokenizer.json"))


def _tensors(reader):
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
             "output.weight": "lm_head.weight"}
    for t in reader.tensors:
        values = np.ascontiguousarray(gguf.dequantize(t.data, t.tensor_type), np.float32)
        if t.name in whole:
            yield whole[t.name], values
            continue
        _, layer, part, _ = t.name.split(".")
        prefix = f"model.layers.{layer}."
        if part in LAYER_NAMES:
            yield f"{prefix}{LAYER_NAMES[part]}.weight", values
        else:
            which = part.removeprefix("ffn_").removesuffix("_exps")
            for e, matrix in enumerate(values):
                yield f"{prefix}block_sparse_moe.experts.{e}.{which}.weight", np.ascontiguousarray(matrix)


def _config(kv, tied):
    get = lambda key, default=None: kv.get(f"smallthinker.{key}", default)  # noqa: E731
    layers, window = get("block_count"), get("attention.sliding_window", 0)
    layout = [int(i % 4 != 0) for i in range(layers)] if window else [0] * layers
    tokens = kv["tokenizer.ggml.tokens"]
    return {
        "architectures": ["SmallThinkerForCausalLM"], "model_type": "smallthinker",
        "vocab_size": len(tokens), "hidden_size": get("embedding_length"), "num_hidden_layers": layers,
        "num_attention_heads": get("attention.head_count"), "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": get("attention.key_length"), "moe_ffn_hidden_size": get("expert_feed_forward_length"),
        "moe_num_primary_experts": get("expert_count"), "moe_num_active_primary_experts": get("expert_used_count"),
        "moe_primary_router_apply_softmax": get("expert_gating_func") == 1, "norm_topk_prob": True,
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"), "rope_theta": get("rope.freq_base"),
        "rope_scaling": None, "rope_layout": layout if window else [1] * layers, "sliding_window_layout": layout,
        "sliding_window_size": window or None, "max_position_embeddings": get("context_length"),
        "tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": kv["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "float32",
    }


def _tokenizer(kv):
    tokens, types = kv["tokenizer.ggml.tokens"], kv["tokenizer.ggml.token_type"]
    merges = [tuple(m.split(" ")) for m in kv.get("tokenizer.ggml.merges", [])]
    ids = {t: i for i, (t, kind) in enumerate(zip(tokens, types)) if kind == 1}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens if t not in ids])
    return tokenizer
