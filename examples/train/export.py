"""Write a checkpoint in the Hugging Face layout of SmallThinker: config, safetensors, tokenizer, chat template.

    python export.py run/merged.npz --tokenizer run/tokenizer.json --out run/hf
    python export.py run/part.*.npz --tokenizer run/tokenizer.json --out run/hf      # a checkpoint in parts
    python export.py --random --tokenizer run/tokenizer.json --out run/hf-random      # untrained, for tests
"""
import argparse
import dataclasses
import json
import os
import shutil

import jax
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

import store
import model

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def tensors(cfg, params):
    """The checkpoint's tensors by their Hugging Face names, [out, in], float32."""
    out = {"model.embed_tokens.weight": params["embed"], "model.norm.weight": params["norm"]}
    for i in range(cfg.layers):
        p = f"model.layers.{i}."
        for ours, theirs in (("q", "self_attn.q_proj"), ("k", "self_attn.k_proj"), ("v", "self_attn.v_proj"),
                             ("o", "self_attn.o_proj"), ("attn_norm", "input_layernorm"),
                             ("ffn_norm", "post_attention_layernorm"), ("router", "block_sparse_moe.primary_router")):
            out[f"{p}{theirs}.weight"] = params[ours][i]
        for e in range(cfg.experts):
            for name in ("gate", "up", "down"):
                out[f"{p}block_sparse_moe.experts.{e}.{name}.weight"] = params[name][i, e]
    return {k: np.ascontiguousarray(v, np.float32) for k, v in out.items()}


def hf_config(cfg, context, ids):
    """config.json with the keys of the published SmallThinker configurations."""
    layout = [0 if cfg.is_global(i) else 1 for i in range(cfg.layers)]
    return {
        "architectures": ["SmallThinkerForCausalLM"],
        "model_type": "smallthinker",
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.hidden,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "moe_ffn_hidden_size": cfg.ffn,
        "moe_num_primary_experts": cfg.experts,
        "moe_num_active_primary_experts": cfg.top_k,
        "moe_primary_router_apply_softmax": False,
        "norm_topk_prob": True,
        "rms_norm_eps": cfg.eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None,
        "rope_layout": layout,
        "sliding_window_layout": layout,
        "sliding_window_size": cfg.window,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "pad_token_id": ids["<|endoftext|>"],
        "use_cache": True,
        "torch_dtype": "float32",
    }


def write(cfg, params, tokenizer_path, out, context=2048):
    """Write the directory `out`. `context` is the longest sequence an engine should allow."""
    os.makedirs(out, exist_ok=True)
    shutil.copyfile(tokenizer_path, os.path.join(out, "tokenizer.json"))
    with open(tokenizer_path, encoding="utf-8") as f:
        specials = {t["content"]: t["id"] for t in json.load(f)["added_tokens"]}
    save_file(tensors(cfg, params), os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    files = {
        "config.json": hf_config(cfg, context, specials),
        "generation_config.json": {
            "eos_token_id": [specials["<|im_end|>"], specials["<|endoftext|>"]],
            "pad_token_id": specials["<|endoftext|>"], "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "add_prefix_space": False, "bos_token": None,
            "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
            "clean_up_tokenization_spaces": False, "model_max_length": context, "chat_template": CHAT_TEMPLATE,
            "added_tokens_decoder": {str(i): {
                "content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                "special": True} for t, i in specials.items()}},
    }
    for name, value in files.items():
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            json.dump(value, f, indent=2)
            f.write("\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint", nargs="*", help="a checkpoint, or all its parts")
    ap.add_argument("--tokenizer", default="run/tokenizer.json")
    ap.add_argument("--out", default="run/hf")
    ap.add_argument("--random", action="store_true", help="fresh weights instead of a checkpoint")
    ap.add_argument("--context", type=int, default=2048, help="the longest sequence an engine should allow")
    ap.add_argument("--seed", type=int, default=0)
    a = ap.parse_args()
    if a.random == bool(a.checkpoint):
        ap.error("give either a checkpoint or --random")
    if a.random:
        cfg = model.Config(vocab=Tokenizer.from_file(a.tokenizer).get_vocab_size())
        params = {k: np.asarray(v) for k, v in model.init(cfg, jax.random.PRNGKey(a.seed)).items()}
    else:
        cfg, params, _ = store.load_params(*a.checkpoint)
    write(cfg, params, a.tokenizer, a.out, a.context)
    print(f"{a.out}: {model.count(params):,} parameters, {dataclasses.asdict(cfg)}")


if __name__ == "__main__":
    main()
