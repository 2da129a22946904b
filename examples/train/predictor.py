"""Train what picks the rows of the sparse LM head: a bit per direction and row, a scale per row.

    python predictor.py run/hf --shards run/shards/chat --mix chat
    smallthinker convert run/hf model.gguf --type q4_0          # takes it along

The engine makes such a sketch of any head by itself, from the head alone. This one has seen where the states of the model
lie. The estimate of a logit is `mean · state + scale * (±z_1 ±z_2 ...)`, with `z = directions · state`. The rows with the
largest estimates are computed first; the largest logit among them decides: all rows are picked whose estimate is at most
`margin` below it. So directions, signs, scales and mean are trained to make the estimate of the full head's choice at least
about the choice's logit, and the other estimates lower than that. Signs are trained as the real numbers behind them, with the gradient
of the identity between -1 and 1. States whose choice is rare are drawn more often, as a row that is hardly ever chosen has to be
found as well when its time has come. The margin is the one that lets `--rows` of the rows through on text that was not trained on.

Written to head_sketch.safetensors in the model's directory.
"""
import argparse
import itertools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import data
import model
import q4
import shards
from runners import JaxModel

LEAST = 16  # rows that the engine computes first
FAR = 5.0  # below the choice's logit
TESTED = 40_000  # tokens that the margin is measured on


def states(net, rows):
    """Token rows [n, length] -> (final normed states float16 [tokens, hidden], the full head's choices int32 [tokens], their
    logits float32 [tokens])."""
    params = {k: v if k in q4.KEPT else q4.q4_0(v) for k, v in net.params.items()}

    @jax.jit
    def run(tokens):
        x = model.hidden_states(net.cfg, params, tokens)[0].reshape(-1, net.cfg.hidden)
        logits = x @ params["embed"].T
        return x.astype(jnp.float16), jnp.argmax(logits, -1), jnp.max(logits, -1)

    found = [[np.asarray(a) for a in run(part)] for part in rows]
    return tuple(np.concatenate(parts) for parts in zip(*found))


def start(head, x, count, rng):
    """Directions [count, hidden] along which the logits of states `x` differ most, turned at random; real numbers whose signs
    are kept [vocab, count]; logarithms of scales [vocab]; mean [hidden] of the head's rows."""
    moment = np.linalg.eigh(x.T.astype(np.float64) @ x / len(x))
    values = np.sqrt(np.maximum(moment.eigenvalues, moment.eigenvalues.max() * 1e-6))
    root = moment.eigenvectors * values
    rows, size, columns = np.linalg.svd((head - head.mean(0)) @ root, full_matrices=False)
    turn = np.linalg.qr(rng.normal(size=(count, count)))[0]
    bits = rows[:, :count] * size[:count] @ turn.T
    directions = turn @ (columns[:count] @ (moment.eigenvectors / values).T)
    scale = (bits * bits).sum(1) / np.abs(bits).sum(1)
    found = {"directions": directions, "bits": bits / np.sqrt((bits * bits).mean()), "scale": np.log(scale + 1e-3),
             "mean": head.mean(0)}
    return {k: jnp.asarray(v, jnp.float32) for k, v in found.items()}


def estimates(p, x):
    """[tokens, vocab]."""
    signs = jnp.clip(p["bits"], -1, 1)
    signs += jax.lax.stop_gradient(jnp.where(p["bits"] >= 0, 1.0, -1.0) - signs)
    directions = p["directions"] + jax.lax.stop_gradient(q4.q4_0(p["directions"]) - p["directions"])
    return (x @ p["mean"])[:, None] + x @ directions.T @ signs.T * jnp.exp(p["scale"])


def loss(p, x, y, top):
    """How far the estimates of the full head's choices are below their logits `top`, and those of the other rows above `top`, softly.
    What is more than FAR below counts by its square: such choices would be missed."""
    s = estimates(p, x)
    choice = jnp.arange(s.shape[1]) == y[:, None]
    others = jax.nn.logsumexp(jnp.where(choice, -jnp.inf, s), -1)
    below = top - jnp.sum(s, -1, where=choice)
    return jnp.mean(jax.nn.softplus(below) + jnp.maximum(below - FAR, 0) ** 2 / FAR + jax.nn.softplus(others - top))


def rate(p):
    """What a step changes at most, by parameter: in proportion to its size; a scale is a logarithm. The mean moves all estimates,
    so it goes slowly."""
    share = {"scale": 0.3, "mean": 0.1}
    return {k: share.get(k, 1.0) * (1.0 if k == "scale" else jnp.sqrt(jnp.mean(v * v))) for k, v in p.items()}


@jax.jit
def step(p, m, v, i, lr, x, y, top):
    """Adam."""
    value, grad = jax.value_and_grad(loss)(p, x.astype(jnp.float32), y, top)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grad)
    v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, v, grad)
    p = jax.tree.map(lambda p, m, v, r: p - lr * r * m / (1 - 0.9**i) / (jnp.sqrt(v / (1 - 0.99**i)) + 1e-9), p, m, v, rate(p))
    return p, m, v, value


@jax.jit
def distances(p, head, x, y):
    """The margins that rows need [tokens, vocab], and those that the choices need [tokens]: how far their estimates are below the
    largest logit of the LEAST rows with the largest estimates. Minus infinity for these rows."""
    x = x.astype(jnp.float32)
    s = estimates(p, x)
    first, rows = jax.lax.top_k(s, LEAST)
    top = jnp.take_along_axis(x @ head.T, rows, 1).max(-1, keepdims=True)
    s = jnp.where(s >= first[:, -1:], -jnp.inf, top - s)
    return s, jnp.take_along_axis(s, y[:, None], 1)[:, 0]


def cumulative(choices, vocab, power):
    """[tokens], rising to 1: sums of the probabilities that states are drawn with, the -`power`th powers of how often their choices
    occur (as if at least 20 times)."""
    weights = np.maximum(np.bincount(choices, minlength=vocab), 20.0)[choices] ** -power
    return np.cumsum(weights / weights.sum())


def choose_margin(p, head, x, y, share):
    """The margin that lets `share` of the rows through; and (mean rows, share of choices missed) with it."""
    parts = [distances(p, head, x[i: i + 1024], y[i: i + 1024]) for i in range(0, len(x), 1024)]

    def rows(margin):
        return np.concatenate([(s <= margin).sum(-1) for s, _ in parts]).mean()

    low, high = 0.0, 1000.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if rows(middle) <= share * parts[0][0].shape[1] else (low, middle)
    return low, rows(low), float(np.concatenate([d > low for _, d in parts]).mean())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("directory", help="Hugging Face directory")
    ap.add_argument("--shards", default="run/shards/chat", help="folder with token rows")
    ap.add_argument("--mix", default="chat", choices=data.MIXES)
    ap.add_argument("--directions", type=int, default=96, help="in steps of 16, the hidden size at most")
    ap.add_argument("--rows", type=float, default=0.03, help="share of the head's rows to pick")
    ap.add_argument("--tokens", type=float, default=2e6, help="states to train on")
    ap.add_argument("--rare", type=float, default=0.6, help="how much more often rare choices are drawn: 0 not, 1 all equally")
    ap.add_argument("--steps", type=int, default=8000, help="of 1024 states")
    ap.add_argument("--seed", type=int, default=0)
    a = ap.parse_args()
    net, rng = JaxModel(a.directory), np.random.default_rng(a.seed)
    source = shards.batches(a.shards, data.MIXES[a.mix], 32, 1)
    length = next(source)[0].shape[1] - 1
    rows = [tokens[:, :length].astype(np.int32) for tokens, _ in itertools.islice(source, int(a.tokens) // (32 * length) + 1)]
    x, y, top = states(net, rows)
    head = np.asarray(q4.q4_0(net.params["embed"]))
    print(f"{len(x):,} states", flush=True)

    order, tested = rng.permutation(len(x)), min(TESTED, len(x) // 4)
    held, order = np.sort(order[:tested]), order[tested:]
    sums = cumulative(y[order], len(head), a.rare)
    count = min(a.directions, head.shape[1]) // 16 * 16
    p = start(head, x[order[:200_000]].astype(np.float32), count, rng)
    m = v = jax.tree.map(jnp.zeros_like, p)
    began, losses = time.time(), []
    for i in range(1, a.steps + 1):
        part = order[np.minimum(np.searchsorted(sums, rng.random(1024)), len(order) - 1)]
        left = min(1.0, (1 - i / a.steps) / 0.7 + 1e-3)
        p, m, v, value = step(p, m, v, float(i), 0.01 * min(1.0, i / 100) * left, x[part], y[part], top[part])
        losses.append(value)
        if i % 1000 == 0 or i == a.steps:
            margin, picked, missed = choose_margin(p, head, x[held[:4096]], y[held[:4096]], a.rows)
            print(f"step {i} loss {np.mean(losses[-1000:]):.4f} margin {margin:.2f} rows {picked:.0f} "
                  f"missed {missed:.5f} {time.time() - began:.0f} s", flush=True)
    margin, picked, missed = choose_margin(p, head, x[held], y[held], a.rows)
    print(f"margin {margin:.3f}: {picked:.1f} of {len(head)} rows, {missed:.2%} of the choices missed ({tested} tokens)")
    save_file({
        "directions": np.asarray(p["directions"]), "scales": np.asarray(jnp.exp(p["scale"])),
        "signs": np.packbits(np.asarray(p["bits"]) >= 0, axis=1, bitorder="little"),
        "mean": np.asarray(p["mean"]), "margin": np.asarray([margin], np.float32)}, os.path.join(a.directory, "head_sketch.safetensors"))


if __name__ == "__main__":
    main()
