"""The SmallThinker graph in JAX, written for training on a CPU or a GPU.

Every layer routes on the raw residual stream *before* its attention norm, so that an engine can fetch the chosen
experts while attention runs. Layers 0, 4, 8, ... attend globally and do not rotate (NoPE); the others see a sliding
window and rotate (RoPE). Experts are ReGLU: down(relu(gate x) * up x).

Weights are stacked over layers ([layer, ...]) and oriented [out, in], as the checkpoint stores them. They and the
residual stream are float32; `Compute.dtype` is the type of the matrix products.
`reference.py` is the same mathematics written a second time, plainly; this file is the fast one.
"""
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import moe


@dataclass(frozen=True)
class Config:
    """Hyperparameters. Sizes that quantization cuts into blocks of 32 are multiples of 32."""

    vocab: int = 4096
    layers: int = 8
    hidden: int = 256
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 96
    experts: int = 32
    top_k: int = 4
    window: int = 256
    period: int = 4
    rope_theta: float = 10000.0
    eps: float = 1e-6

    def is_global(self, layer):
        """Whether `layer` attends to everything and does not rotate."""
        return layer % self.period == 0


@dataclass(frozen=True)
class Compute:
    """How to compute, which changes nothing but rounding."""

    dtype: str = "float32"  # of matrix products: float32 or bfloat16
    block: int = 32  # rows of an expert's matrix product; larger on a GPU
    flash: bool = False  # cuDNN's fused attention; needs a GPU and bfloat16


def init(cfg, key):
    """Fresh parameters: a dict of stacked float32 arrays."""
    shapes = {
        "q": (cfg.heads * cfg.head_dim, cfg.hidden),
        "k": (cfg.kv_heads * cfg.head_dim, cfg.hidden),
        "v": (cfg.kv_heads * cfg.head_dim, cfg.hidden),
        "o": (cfg.hidden, cfg.heads * cfg.head_dim),
        "router": (cfg.experts, cfg.hidden),
        "gate": (cfg.experts, cfg.ffn, cfg.hidden),
        "up": (cfg.experts, cfg.ffn, cfg.hidden),
        "down": (cfg.experts, cfg.hidden, cfg.ffn),
    }
    params = {}
    for name, shape in shapes.items():
        key, sub = jax.random.split(key)
        std = 1 / math.sqrt(shape[-1])
        if name in ("o", "down"):  # what is added to the residual stream starts small
            std /= math.sqrt(2 * cfg.layers)
        params[name] = std * jax.random.normal(sub, (cfg.layers, *shape), jnp.float32)
    params["embed"] = 0.05 * jax.random.normal(key, (cfg.vocab, cfg.hidden), jnp.float32)
    params["attn_norm"] = jnp.ones((cfg.layers, cfg.hidden))
    params["ffn_norm"] = jnp.ones((cfg.layers, cfg.hidden))
    params["norm"] = jnp.ones((cfg.hidden,))
    return params


def count(params):
    """Number of parameters."""
    return sum(int(np.prod(p.shape)) for p in params.values())


def rms_norm(x, weight, eps):
    """x / rms(x) * weight over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * weight


def rope_tables(cfg, length):
    """cos and sin, [length, head_dim / 2]."""
    half = cfg.head_dim // 2
    angle = np.arange(length)[:, None] * cfg.rope_theta ** (-np.arange(half) / half)[None, :]
    return jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(np.sin(angle), jnp.float32)


def rotate(x, cos, sin):
    """Rotate-half RoPE of x [batch, pos, head, dim]."""
    a, b = jnp.split(x, 2, -1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention(q, k, v, window, how):
    """Causal attention, float32 q [B, T, H, D], k and v [B, T, KV, D] -> `how.dtype` [B, T, H * D]. window 0 = global.

    Queries go in chunks, so that keys which no query of a chunk may see cost nothing; the heads that share a key
    head are stacked into one taller matrix product. A column of ones beside the values makes the softmax denominator
    part of that product, because XLA's row sums are slow on a CPU; for the same reason no row maximum is subtracted:
    scores are capped at 60 instead, far above what training produces and far below where exp overflows.
    """
    batch, length, heads, dim = q.shape
    q, k, v = (x.astype(how.dtype) for x in (q, k, v))
    if how.flash:
        local = (window - 1, 0) if window else None
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=local, implementation="cudnn")
        return y.reshape(batch, length, heads * dim)
    kv, chunk = k.shape[2], max(128, length // 4)
    group = heads // kv
    q = q.reshape(batch, length, kv, group, dim).transpose(0, 2, 1, 3, 4) * jnp.asarray(dim**-0.5, q.dtype)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    v = jnp.concatenate([v, jnp.ones((*v.shape[:3], 1), v.dtype)], -1)
    out = []
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        low = max(0, start - window + 1) // 32 * 32 if window else 0
        i, j = start + jnp.arange((stop - start) * group)[:, None] // group, jnp.arange(low, stop)[None, :]
        seen = (j <= i) & (i - j < window) if window else j <= i
        qc = q[:, :, start:stop].reshape(batch * kv, -1, dim)
        kc = k[:, :, low:stop].reshape(batch * kv, -1, dim)
        vc = v[:, :, low:stop].reshape(batch * kv, -1, dim + 1)
        score = jnp.minimum(jnp.einsum("bqd,bkd->bqk", qc, kc, preferred_element_type=jnp.float32), 60.0)
        p = jnp.exp(score) * seen[None].astype(jnp.float32)
        y = jnp.einsum("bqk,bkd->bqd", p.astype(how.dtype), vc, preferred_element_type=jnp.float32)
        y = (y[..., :-1] / y[..., -1:]).astype(how.dtype)
        out.append(y.reshape(batch, kv, stop - start, group, dim))
    return jnp.concatenate(out, 2).transpose(0, 2, 1, 3, 4).reshape(batch, length, heads * dim)


def hidden_states(cfg, params, tokens, how=Compute()):
    """tokens [B, T] -> (final normed states float32 [B, T, hidden], what the layers report).

    The report holds, per layer: `share` and `probability` [L, B, experts], of each row's token-slots the share that
    an expert got and its mean softmax probability; `z` [L], the mean square of router logits; `sparsity` and
    `density` [L], the share of zeros after ReLU and a smooth count of the others (moe.experts).
    """
    batch, length = tokens.shape
    cos, sin = rope_tables(cfg, length)

    def product(x, weight):
        return jnp.matmul(x.astype(how.dtype), weight.T.astype(how.dtype), preferred_element_type=jnp.float32)

    x = params["embed"][tokens]
    report = {"share": [], "probability": [], "z": [], "sparsity": [], "density": []}
    for i in range(cfg.layers):
        w = {name: p[i] for name, p in params.items() if name not in ("embed", "norm")}
        router = x @ w["router"].T  # raw residual, before the norm

        a = rms_norm(x, w["attn_norm"], cfg.eps)
        q = product(a, w["q"]).reshape(batch, length, cfg.heads, cfg.head_dim)
        k = product(a, w["k"]).reshape(batch, length, cfg.kv_heads, cfg.head_dim)
        v = product(a, w["v"]).reshape(batch, length, cfg.kv_heads, cfg.head_dim)
        if not cfg.is_global(i):
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        x = x + product(attention(q, k, v, 0 if cfg.is_global(i) else cfg.window, how), w["o"])

        f = rms_norm(x, w["ffn_norm"], cfg.eps)
        y, found = moe.experts(cfg.top_k, how, f, router, w["gate"], w["up"], w["down"])
        x = x + y
        found |= {"probability": jax.nn.softmax(router, -1).mean(1), "z": jnp.mean(router * router)}
        for name, value in found.items():
            report[name].append(value)
    return rms_norm(x, params["norm"], cfg.eps), {name: jnp.stack(values) for name, values in report.items()}


def logits(cfg, params, tokens, how=Compute()):
    """tokens [B, T] -> float32 [B, T, vocab], tied head."""
    return hidden_states(cfg, params, tokens, how)[0] @ params["embed"].T


def nats(cfg, params, tokens, targets, how=Compute()):
    """Cross entropy of every target in nats, float32 [B, T], and the layers' report."""
    states, report = hidden_states(cfg, params, tokens, how)
    picked = jnp.sum(states * params["embed"][targets], -1)  # cheaper to differentiate than picking from the logits
    head = params["embed"].T.astype(how.dtype)
    y = jnp.matmul(states.astype(how.dtype), head, preferred_element_type=jnp.float32)
    return jax.nn.logsumexp(y, -1) - picked, report
