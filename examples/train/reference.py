"""The forward pass of a Hugging Face SmallThinker directory, written plainly: an oracle for other engines.

It shares no code with model.py: whole score matrices, every expert computed for every token, one explicit formula per
line. It reads config.json, so it also covers what the trained model does not use (softmax router, own head, no
window).

    python reference.py run/hf --tokens 1,2,3 --out logits.npy       # float32 [positions, vocab]
    python reference.py run/hf --text "Once upon a time" --float64 --top 5
"""
import argparse
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file


class Reference:
    """A loaded checkpoint. dtype jnp.float64 needs JAX's x64 mode (`--float64` sets it)."""

    def __init__(self, path, dtype=jnp.float32):
        with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
            self.config = json.load(f)
        c = self.config
        if c["model_type"] != "smallthinker":
            raise ValueError(f"{path}: config.json: model_type is {c['model_type']!r}, must be 'smallthinker'")
        self.dtype = dtype
        files = sorted(n for n in os.listdir(path) if n.endswith(".safetensors"))
        self.weights = {k: jnp.asarray(v, dtype) for n in files for k, v in load_file(os.path.join(path, n)).items()}
        layers = c["num_hidden_layers"]
        self.rope = c.get("rope_layout") or [1] * layers
        slides = c.get("sliding_window_layout") or [0] * layers
        self.window = [c["sliding_window_size"] if s else 0 for s in slides]

    def weight(self, layer, name):
        return self.weights[f"model.layers.{layer}.{name}.weight"]

    def norm(self, x, weight):
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.config["rms_norm_eps"]) * weight

    def rotate(self, x):
        """RoPE on x [position, head, dim]; dimension i pairs with i + dim / 2."""
        length, _, dim = x.shape
        frequency = self.config["rope_theta"] ** (-jnp.arange(0, dim, 2, dtype=self.dtype) / dim)
        angle = jnp.arange(length, dtype=self.dtype)[:, None] * frequency[None, :]
        cos, sin = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
        first, second = x[..., : dim // 2], x[..., dim // 2:]
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def attention(self, layer, x):
        c, length = self.config, x.shape[0]
        heads, kv_heads, dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        q = (x @ self.weight(layer, "self_attn.q_proj").T).reshape(length, heads, dim)
        k = (x @ self.weight(layer, "self_attn.k_proj").T).reshape(length, kv_heads, dim)
        v = (x @ self.weight(layer, "self_attn.v_proj").T).reshape(length, kv_heads, dim)
        if self.rope[layer]:
            q, k = self.rotate(q), self.rotate(k)
        position = np.arange(length)
        distance = position[:, None] - position[None, :]
        visible = distance >= 0
        if self.window[layer]:
            visible &= distance < self.window[layer]
        mixed = []
        for h in range(heads):
            shared = h // (heads // kv_heads)
            score = q[:, h] @ k[:, shared].T / np.sqrt(dim)
            mixed.append(jax.nn.softmax(jnp.where(visible, score, -jnp.inf), axis=-1) @ v[:, shared])
        return jnp.concatenate(mixed, axis=-1) @ self.weight(layer, "self_attn.o_proj").T

    def experts(self, layer, router, x):
        """Weighted sum of the chosen experts; ties go to the lower index."""
        c, moe = self.config, "block_sparse_moe.experts"
        chosen = jnp.argsort(-router, axis=-1, stable=True)[:, : c["moe_num_active_primary_experts"]]
        score = jnp.take_along_axis(router, chosen, axis=-1)
        if c["moe_primary_router_apply_softmax"]:
            share = jax.nn.softmax(score, axis=-1)
        else:
            share = jax.nn.sigmoid(score)
            share = share / share.sum(axis=-1, keepdims=True)
        out = jnp.zeros_like(x)
        for e in range(c["moe_num_primary_experts"]):
            gate = jnp.maximum(x @ self.weight(layer, f"{moe}.{e}.gate").T, 0)
            y = (gate * (x @ self.weight(layer, f"{moe}.{e}.up").T)) @ self.weight(layer, f"{moe}.{e}.down").T
            out = out + jnp.where(chosen == e, share, 0).sum(axis=-1, keepdims=True) * y
        return out

    def logits(self, tokens):
        """Logits [len(tokens), vocab] after each token."""
        embedding = self.weights["model.embed_tokens.weight"]
        x = embedding[jnp.asarray(tokens)]
        for layer in range(self.config["num_hidden_layers"]):
            router = x @ self.weight(layer, "block_sparse_moe.primary_router").T
            x = x + self.attention(layer, self.norm(x, self.weight(layer, "input_layernorm")))
            x = x + self.experts(layer, router, self.norm(x, self.weight(layer, "post_attention_layernorm")))
        head = embedding if self.config["tie_word_embeddings"] else self.weights["lm_head.weight"]
        return np.asarray(self.norm(x, self.weights["model.norm.weight"]) @ head.T)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("directory")
    which = ap.add_mutually_exclusive_group(required=True)
    which.add_argument("--tokens", help="comma-separated token ids")
    which.add_argument("--text")
    ap.add_argument("--out", help="save the logits, float32")
    ap.add_argument("--float64", action="store_true")
    ap.add_argument("--top", type=int, default=0, help="print the most likely next tokens")
    a = ap.parse_args()
    if a.float64:
        jax.config.update("jax_enable_x64", True)
    reference = Reference(a.directory, jnp.float64 if a.float64 else jnp.float32)
    if a.text is None:
        ids = [int(t) for t in a.tokens.split(",")]
    else:
        from tokenizers import Tokenizer
        ids = Tokenizer.from_file(os.path.join(a.directory, "tokenizer.json")).encode(a.text).ids
    y = reference.logits(ids)
    for i in np.argsort(-y[-1])[: a.top]:
        print(i, f"{y[-1, i]:.5f}")
    if a.out:
        np.save(a.out, y.astype(np.float32))


if __name__ == "__main__":
    main()
