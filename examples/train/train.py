"""Train SmallThinker from scratch for a given time on whatever device JAX finds.

The learning rate follows elapsed time: after a short warm-up it stays, and falls to zero exactly when the minutes are
over, so that a run always ends annealed, however busy the machine. A run that was stopped goes on with --resume.

    python tokenizer.py --out run/tokenizer.json
    python train.py --minutes 60
"""
import argparse
import dataclasses
import functools
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

import data
import model
import optim

BALANCE, Z = 0.01, 1e-4  # weights of the auxiliary losses


def schedule(step, done, warmup=30, decay=0.6):
    """Learning-rate factor: linear over the first steps, constant, then linear to zero as `done`, the share of the
    time that has passed, goes to one."""
    return min(1.0, (step + 1) / warmup, max(0.0, (1.0 - done) / decay))


def objective(cfg, params, x, y, weights):
    """Cross entropy plus auxiliary losses; the parts come along for the log."""
    ce, aux = model.loss(cfg, params, x, y, weights)
    return ce + BALANCE * aux["balance"] + Z * aux["z"], (ce, aux["balance"])


def make_step(cfg):
    """The compiled training step."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, rows, weights, scale):
        grad = jax.value_and_grad(functools.partial(objective, cfg), has_aux=True)
        (_, parts), grads = grad(params, rows[:, :-1], rows[:, 1:], weights[:, 1:])
        params, state, norm = optim.step(params, grads, state, scale)
        return params, state, (*parts, norm)

    return step


def save(path, cfg, params, state, progress):
    """Write everything a resumed run needs; the file appears whole or not at all."""
    arrays = {f"param.{k}": np.asarray(v) for k, v in params.items()}
    arrays |= {f"{part}.{k}": np.asarray(v) for part in ("m", "v") for k, v in state[part].items()}
    np.savez(path + ".tmp.npz", config=json.dumps(dataclasses.asdict(cfg)), progress=json.dumps(progress),
             t=np.asarray(state["t"]), **arrays)
    os.replace(path + ".tmp.npz", path)


def load(path):
    """(Config, params, optimizer state, progress) of a checkpoint."""
    with np.load(path) as z:
        part = lambda p: {k.removeprefix(p): jnp.asarray(z[k]) for k in z.files if k.startswith(p)}
        return (model.Config(**json.loads(str(z["config"]))), part("param."),
                {"m": part("m."), "v": part("v."), "t": jnp.asarray(z["t"])}, json.loads(str(z["progress"])))


def batches(tokenizer, args, skip=0):
    """Endless (int32 tokens, float32 loss weights), [batch, length + 1] each, made in shards."""
    shard = skip // args.shard
    while True:
        rows = data.rows(tokenizer, "train", 1000 + shard, args.length + 1, args.shard * args.batch)
        weights = np.asarray([data.loss_weights(tokenizer, r) for r in rows], np.float32)
        shape = (args.shard, args.batch, args.length + 1)
        rows, weights = np.asarray(rows, np.int32).reshape(shape), weights.reshape(shape)
        for i in range(skip % args.shard, args.shard):
            yield rows[i], weights[i]
        skip, shard = 0, shard + 1


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--run", default="run", help="folder with tokenizer.json; checkpoints go there")
    ap.add_argument("--minutes", type=float, default=60)
    ap.add_argument("--batch", type=int, default=4, help="rows per step")
    ap.add_argument("--length", type=int, default=512)
    ap.add_argument("--shard", type=int, default=250, help="steps of data made at once")
    ap.add_argument("--checkpoint-minutes", type=float, default=5)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--resume", action="store_true")
    args = ap.parse_args()

    tokenizer = Tokenizer.from_file(os.path.join(args.run, "tokenizer.json"))
    path = os.path.join(args.run, "checkpoint.npz")
    if args.resume:
        cfg, params, state, progress = load(path)
    else:
        cfg = model.Config(vocab=tokenizer.get_vocab_size())
        params = model.init(cfg, jax.random.PRNGKey(args.seed))
        state, progress = optim.init(params), {"step": 0, "seconds": 0.0}
    print(f"{model.count(params):,} parameters on {jax.devices()}, {args.batch * args.length} tokens a step", flush=True)

    step, stream = make_step(cfg), batches(tokenizer, args, progress["step"])
    n, total = progress["step"], args.minutes * 60
    start, saved, mark, mark_n, seen = time.time() - progress["seconds"], progress["seconds"], time.time(), n, []
    while (elapsed := time.time() - start) < total:
        params, state, parts = step(params, state, *next(stream), schedule(n, elapsed / total))
        seen.append([float(p) for p in parts])
        n += 1
        if n % 10 == 0:
            ce, balance, norm = np.mean(seen, 0)
            rate = (n - mark_n) * args.batch * args.length / (time.time() - mark)
            print(f"step {n} min {elapsed / 60:.1f} loss {ce:.4f} balance {balance:.3f} grad {norm:.2f} "
                  f"lr {schedule(n, elapsed / total):.3f} tok/s {rate:.0f}", flush=True)
            seen, mark, mark_n = [], time.time(), n
        if elapsed - saved > args.checkpoint_minutes * 60:
            saved = elapsed
            save(path, cfg, params, state, {"step": n, "seconds": elapsed})
    save(path, cfg, params, state, {"step": n, "seconds": total})
    print(f"done: {n} steps, {n * args.batch * args.length:,} tokens", flush=True)


if __name__ == "__main__":
    main()
