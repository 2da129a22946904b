"""Muon for the attention matrices and, on request, for the experts; AdamW for everything else.

Muon (Jordan et al., 2024) replaces the momentum of a weight matrix by the nearest matrix with all singular values
near one, found with five Newton-Schulz steps. It saves steps; for the experts, which hold nine tenths of the weights
but see an eighth of the tokens each, those matrix products would cost a CPU as much as they save, but not a GPU.
"""
import jax
import jax.numpy as jnp

MATRICES = ("q", "k", "v", "o")
EXPERTS = ("gate", "up", "down")


def orthogonalise(m, steps=5):
    """Newton-Schulz on the last two axes of m, any leading axes."""
    tall = m.shape[-2] > m.shape[-1]
    x = m.mT if tall else m
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.mT if tall else x


def init(params, muon=MATRICES):
    """Optimizer state: first moments for all, second moments for what AdamW handles."""
    second = {k: jnp.zeros_like(v) for k, v in params.items() if k not in muon}
    return {"m": jax.tree.map(jnp.zeros_like, params), "v": second, "t": jnp.zeros((), jnp.int32)}


def step(params, grads, state, scale, muon_lr=0.02, adam_lr=0.003, muon_decay=0.1, adam_decay=0.02):
    """One update; `scale` in [0, 1] is the schedule. Gradients are clipped to global norm 1 for AdamW's part."""
    t = state["t"] + 1
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in grads.values()))
    clip = jnp.minimum(1.0, 1.0 / (norm + 1e-9))
    new, m_new, v_new = {}, {}, {}
    for name, p in params.items():
        g, m = grads[name], state["m"][name]
        if name not in state["v"]:
            m = 0.95 * m + 0.05 * g
            update = orthogonalise(0.05 * g + 0.95 * m)
            rows, cols = p.shape[-2:]
            update = update * max(1.0, rows / cols) ** 0.5
            new[name] = p - scale * muon_lr * (update + muon_decay * p)
        else:
            g = g * clip
            m = 0.9 * m + 0.1 * g
            v = 0.97 * state["v"][name] + 0.03 * g * g
            v_new[name] = v
            update = (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.97**t)) + 1e-8)
            decay = adam_decay if name in EXPERTS else 0.0
            new[name] = p - scale * adam_lr * (update + decay * p)
        m_new[name] = m
    return new, {"m": m_new, "v": v_new, "t": t}, norm
