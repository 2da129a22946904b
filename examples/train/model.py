"""The SmallThinker graph in JAX, float32, written for training.

Every layer routes on the raw residual stream *before* its attention norm, so that an engine can fetch the chosen
experts while attention runs. Layers 0, 4, 8, ... attend globally and do not rotate (NoPE); the others see a sliding
window and rotate (RoPE). Experts are ReGLU: down(relu(gate x) * up x).

Weights are stacked over layers ([layer, ...]) and oriented [out, in], as the checkpoint stores them.
`reference.py` is the same mathematics written a second time, plainly; this file is the fast one.
"""
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Config:
    """Hyperparameters. Sizes that quantization cuts into blocks of 32 are multiples of 32."""

    vocab: int = 2048
    layers: int = 6
    hidden: int = 160
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 96
    experts: int = 32
    top_k: int = 2
    window: int = 256
    period: int = 4
    rope_theta: float = 10000.0
    eps: float = 1e-6

    def is_global(self, layer):
        """Whether `layer` attends to everything and does not rotate."""
        return layer % self.period == 0


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


def attention(q, k, v, window, chunk=128):
    """Causal attention, q [B, T, H, D], k and v [B, T, KV, D] -> [B, T, H * D]. window 0 = global.

    Queries go in chunks, so that keys which no query of a chunk may see cost nothing; the heads that share a key
    head are stacked into one taller matrix product. A column of ones beside the values makes the softmax denominator
    part of that product, because XLA's row sums are slow on a CPU; for the same reason no row maximum is subtracted:
    scores are capped at 60 instead, far above what training produces and far below where exp overflows.
    """
    batch, length, heads, dim = q.shape
    kv = k.shape[2]
    group = heads // kv
    q = q.reshape(batch, length, kv, group, dim).transpose(0, 2, 1, 3, 4) * dim**-0.5
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    v = jnp.concatenate([v, jnp.ones((*v.shape[:3], 1), v.dtype)], -1)
    out = []
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        low = max(0, start - window + 1) // 32 * 32 if window else 0
        i, j = np.arange(start, stop)[:, None], np.arange(low, stop)[None, :]
        seen = (j <= i) & (i - j < window) if window else j <= i
        qc = q[:, :, start:stop].reshape(batch * kv, -1, dim)
        kc = k[:, :, low:stop].reshape(batch * kv, -1, dim)
        vc = v[:, :, low:stop].reshape(batch * kv, -1, dim + 1)
        score = jnp.minimum(jnp.einsum("bqd,bkd->bqk", qc, kc), 60.0)
        p = jnp.exp(score) * jnp.asarray(np.repeat(seen, group, 0)[None], score.dtype)
        y = jnp.einsum("bqk,bkd->bqd", p, vc)
        out.append((y[..., :-1] / y[..., -1:]).reshape(batch, kv, stop - start, group, dim))
    return jnp.concatenate(out, 2).transpose(0, 2, 1, 3, 4).reshape(batch, length, heads * dim)


def experts(cfg, x, logits, gate, up, down, block=32):
    """The chosen experts' weighted sum for x [N, hidden], router logits [N, experts]. No token is dropped.

    Token-slots are sorted by expert into blocks of `block` rows that belong to one expert each; the last block of
    an expert is padded with zero rows. There are at most N * top_k / block + experts blocks whatever the routing, so
    the shapes are static and the padding is bounded. Also returns the share of slots per expert.
    """
    n, e, k = x.shape[0], cfg.experts, cfg.top_k
    top, ids = jax.lax.top_k(logits, k)
    weight = jax.nn.sigmoid(top)
    weight = weight / weight.sum(-1, keepdims=True)

    flat = ids.reshape(-1)
    one_hot = jax.nn.one_hot(flat, e, dtype=jnp.int32)
    running = jnp.cumsum(one_hot, 0)
    rank = jnp.take_along_axis(running, flat[:, None], 1)[:, 0] - 1  # place within its expert
    blocks = -(-running[-1] // block)
    last = jnp.cumsum(blocks)
    slot = (last - blocks)[flat] * block + rank
    n_blocks = -(-n * k // block) + e
    owner = jnp.clip(jnp.searchsorted(last, jnp.arange(n_blocks), side="right"), 0, e - 1)
    token = jnp.full((n_blocks * block,), n, jnp.int32).at[slot].set(jnp.arange(n * k) // k)

    rows = jnp.concatenate([x, jnp.zeros((1, x.shape[1]))])[token].reshape(n_blocks, block, -1)
    hidden = jax.nn.relu(jnp.einsum("nbh,nfh->nbf", rows, gate[owner]))
    hidden = hidden * jnp.einsum("nbh,nfh->nbf", rows, up[owner])
    y = jnp.einsum("nbf,nhf->nbh", hidden, down[owner]).reshape(n_blocks * block, -1)
    y = (y[slot].reshape(n, k, -1) * weight[..., None]).sum(1)
    return y, running[-1] / (n * k)


def hidden_states(cfg, params, tokens):
    """tokens [B, T] -> (final normed states [B, T, hidden], auxiliary losses {balance, z})."""
    batch, length = tokens.shape
    cos, sin = rope_tables(cfg, length)
    x = params["embed"][tokens]
    balance = z = 0.0
    for i in range(cfg.layers):
        w = {name: p[i] for name, p in params.items() if name not in ("embed", "norm")}
        router = x.reshape(batch * length, -1) @ w["router"].T  # raw residual, before the norm

        a = rms_norm(x, w["attn_norm"], cfg.eps)
        q = (a @ w["q"].T).reshape(batch, length, cfg.heads, cfg.head_dim)
        k = (a @ w["k"].T).reshape(batch, length, cfg.kv_heads, cfg.head_dim)
        v = (a @ w["v"].T).reshape(batch, length, cfg.kv_heads, cfg.head_dim)
        if not cfg.is_global(i):
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        x = x + attention(q, k, v, 0 if cfg.is_global(i) else cfg.window) @ w["o"].T

        f = rms_norm(x, w["ffn_norm"], cfg.eps).reshape(batch * length, -1)
        y, share = experts(cfg, f, router, w["gate"], w["up"], w["down"])
        x = x + y.reshape(x.shape)

        # Equal load minimises experts * sum(share * mean probability) to 1.0; small logits keep the sigmoid alive.
        balance += cfg.experts * jnp.sum(share * jax.nn.softmax(router, -1).mean(0)) / cfg.layers
        z += jnp.mean(router * router) / cfg.layers
    return rms_norm(x, params["norm"], cfg.eps), {"balance": balance, "z": z}


def logits(cfg, params, tokens):
    """tokens [B, T] -> float32 [B, T, vocab], tied head."""
    return hidden_states(cfg, params, tokens)[0] @ params["embed"].T


def loss(cfg, params, tokens, targets, weights):
    """Mean next-token cross entropy in nats, weighted per target, and the auxiliary losses."""
    states, aux = hidden_states(cfg, params, tokens)
    states = states.reshape(-1, cfg.hidden)
    picked = jnp.sum(states * params["embed"][targets.reshape(-1)], -1)  # cheaper to differentiate than picking from y
    nats = jax.nn.logsumexp(states @ params["embed"].T, -1) - picked
    weights = weights.reshape(-1)
    return jnp.sum(weights * nats) / jnp.sum(weights), aux
