"""Train one stage of SmallThinker on whatever device JAX finds: pretraining, longer context, or chat.

A stage reads rows of token ids from --shards (data.py makes them), starts from fresh weights or --init, and leaves
checkpoint.npz, weights.*.npz for merging and log.jsonl in --out. Its length is a number of --steps, so that it can be
repeated, or --minutes of wall time, whichever ends first: the learning rate follows, so that a run always ends
annealed, however busy the machine. A stage that was stopped goes on with --resume.

    python train.py --out run/base --shards run/shards/pretrain --minutes 60
    python train.py --out run/long --shards run/shards/long --mix long --init run/base/checkpoint.npz \\
        --rope-theta 100000 --batch 2 --minutes 15 --lr 0.3
    python train.py --out run/chat --shards run/shards/chat --mix chat --init run/long/checkpoint.npz \\
        --prompt-weight 0 --lr 0.3 --q4 --minutes 15

On a GPU add --batch 128 --group 8 --dtype bfloat16 --block 512.
"""
import argparse
import dataclasses
import functools
import json
import math
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

import store
import data
import model
import moe
import optim
import q4
import shards

Z = 1e-4  # weight of the mean square of router logits: small logits keep the sigmoid alive


def schedule(step, done, warmup, decay, final):
    """Learning-rate factor: linear over the first steps, constant, then linear to `final` as `done`, the share of the
    stage that has passed, goes to one."""
    return min(1.0, (step + 1) / warmup, final + (1 - final) * max(0.0, 1.0 - done) / decay)


def row_order(balance, rows, group, groups):
    """(permutation of the rows, rows that are balanced together) of a kind of balance; rows come sorted by domain.

    sequence: each row by itself, what the loss of a micro-batch of one sequence is. domain: `group` rows of one domain.
    groups: `groups` groups with rows of all domains, the balance within data-parallel groups. batch: all rows."""
    if balance == "groups":
        return np.arange(rows).reshape(-1, groups).T.reshape(-1), rows // groups
    return np.arange(rows), {"sequence": 1, "domain": group, "batch": rows}[balance]


def make_step(cfg, how, order, balanced, rounded):
    """The compiled training step. `rounded` trains weights that a Q4_0 file will hold; `hyper` holds the
    learning-rate factor, the weight of the balance loss and the wanted ReLU sparsity: a penalty on density keeps every
    layer near it, its weight state["l1"] rising while there are too few zeros and falling while there are enough."""

    def objective(params, l1, x, y, weights, hyper):
        nats, report = model.nats(cfg, q4.straight_through(params) if rounded else params, x, y, how)
        balance = moe.balance_loss(report["share"][:, order], report["probability"][:, order], balanced)
        total = jnp.sum(weights * nats) / jnp.sum(weights) + hyper["balance"] * balance
        total += Z * jnp.mean(report["z"]) + jnp.sum(l1 * report["density"])
        return total, {"nats": jnp.sum(weights * nats, 1), "weight": weights.sum(1), "balance": balance,
                       "sparsity": report["sparsity"]}

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, rows, weights, hyper):
        rows = rows.astype(jnp.int32)
        grad = jax.value_and_grad(objective, has_aux=True)
        l1 = state["l1"]
        (_, seen), grads = grad(params, l1, rows[:, :-1], rows[:, 1:], weights[:, 1:], hyper)
        new_params, new_state, norm = optim.step(params, grads, state, hyper["scale"])
        fine = jnp.isfinite(norm)  # a step that overflowed is left out
        params, state = jax.tree.map(lambda new, old: jnp.where(fine, new, old), (new_params, new_state),
                                     (params, {k: state[k] for k in new_state}))
        missing = jnp.clip(20 * (hyper["sparsity"] - seen["sparsity"]), -1, 1)
        l1 = jnp.clip(l1 * jnp.exp(0.02 * missing), 1e-5, 0.1)
        return params, state | {"l1": l1}, seen | {"grad": norm, "l1": l1}

    return step


class Log:
    """Gathers what the steps report; a line every few steps on the screen and in log.jsonl."""

    def __init__(self, path, mix, tokens_per_row):
        self.file, self.names, self.per_row = open(path, "a", encoding="utf-8"), list(mix), tokens_per_row
        self.pending, self.mark = [], time.time()

    def add(self, seen, domains):
        self.pending.append((seen, domains))

    def write(self, step, seconds, scale):
        """Reading the values waits for the device, so this is rare."""
        seen = [jax.tree.map(np.asarray, s) for s, _ in self.pending]
        domains = np.concatenate([d for _, d in self.pending])
        nats, weight = (np.concatenate([s[k] for s in seen]) for k in ("nats", "weight"))
        rate = len(nats) * self.per_row / (time.time() - self.mark)
        loss = {n: float(nats[domains == i].sum() / weight[domains == i].sum())
                for i, n in enumerate(self.names) if (domains == i).any()}
        mean = lambda k: np.mean([s[k] for s in seen], 0)
        line = {"step": step, "seconds": round(seconds, 1), "loss": float(nats.sum() / weight.sum()), "domains": loss,
                "balance": float(mean("balance")), "grad": float(mean("grad")), "lr": scale,
                "tokens_per_s": round(rate), "sparsity": [round(float(x), 4) for x in mean("sparsity")],
                "l1": [round(float(x), 6) for x in mean("l1")]}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        print(f"step {step} {seconds:.0f} s loss {line['loss']:.4f} balance {line['balance']:.3f} "
              f"grad {line['grad']:.2f} lr {scale:.3f} sparsity {np.median(line['sparsity']):.2f} "
              f"tok/s {rate:.0f}", flush=True)
        self.pending, self.mark = [], time.time()


def due(share, snapshots):
    """How many snapshots, not counting the one at the end, belong before `share` of the stage."""
    return sum(share > 0.8 + 0.2 * i / (snapshots - 1) for i in range(snapshots - 1))


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default="run/base", help="folder of this stage")
    ap.add_argument("--shards", default="run/shards/pretrain")
    ap.add_argument("--mix", choices=list(data.MIXES), default="pretrain", help="shares of domains in data.py")
    ap.add_argument("--tokenizer", default="run/tokenizer.json")
    ap.add_argument("--init", metavar="CHECKPOINT", nargs="+", help="weights to start from instead of fresh ones")
    ap.add_argument("--resume", action="store_true", help="go on from checkpoint.npz in --out")
    ap.add_argument("--config", type=json.loads, default={}, help='other hyperparameters, {"layers": 4}')
    ap.add_argument("--rope-theta", type=float, help="another RoPE base than the start's")
    ap.add_argument("--minutes", type=float, help="length of the stage in wall time (default 60 without --steps)")
    ap.add_argument("--steps", type=int, help="length of the stage in steps")
    ap.add_argument("--batch", type=int, default=8, help="rows per step")
    ap.add_argument("--group", type=int, default=1, help="neighbouring rows of one domain in a batch")
    ap.add_argument("--lr", type=float, default=1.0, help="factor on the learning rates of optim.py")
    ap.add_argument("--muon-experts", action="store_true", help="Muon for the experts too; on a GPU it costs little")
    ap.add_argument("--warmup", type=int, default=30, help="steps")
    ap.add_argument("--decay", type=float, default=0.6, help="share of the stage in which the learning rate falls")
    ap.add_argument("--final", type=float, default=0.0, help="learning-rate factor at the end")
    ap.add_argument("--balance", choices=("sequence", "domain", "groups", "batch"), default="groups")
    ap.add_argument("--balance-groups", type=int, default=4, help="number of groups for --balance groups")
    ap.add_argument("--balance-weight", type=float, default=0.01)
    ap.add_argument("--sparsity", type=float, default=0.65, help="least share of zeros after ReLU in every layer")
    ap.add_argument("--prompt-weight", type=float, default=0.2, help="loss weight of what a user or system says")
    ap.add_argument("--q4", action="store_true", help="train weights rounded to Q4_0")
    ap.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    ap.add_argument("--block", type=int, default=32, help="rows of an expert's matrix product")
    ap.add_argument("--flash", action="store_true", help="cuDNN attention")
    ap.add_argument("--snapshots", type=int, default=0, help="weights to keep for merging, from the last fifth")
    ap.add_argument("--checkpoint-minutes", type=float, default=5)
    ap.add_argument("--log-steps", type=int, default=10)
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    if args.balance == "groups" and args.batch % args.balance_groups:
        ap.error(f"--batch {args.batch} is not a multiple of --balance-groups {args.balance_groups}")
    args.minutes = args.minutes or (math.inf if args.steps else 60)
    args.steps = args.steps or math.inf
    if args.batch % args.group:
        ap.error("--batch must be a multiple of --group")
    return args


def start(args, vocab):
    """(Config, weights, optimizer state, progress) as the arguments ask."""
    progress = {}
    if args.resume:
        cfg, params, state, progress = store.load(os.path.join(args.out, "checkpoint.npz"))
        state = jax.tree.map(jnp.asarray, state)
    elif args.init:
        cfg, params, progress = store.load_params(*args.init)
    else:
        cfg = model.Config(vocab=vocab, **args.config)
        params = model.init(cfg, jax.random.PRNGKey(args.seed))
    cfg = dataclasses.replace(cfg, rope_theta=args.rope_theta or cfg.rope_theta)
    params = jax.tree.map(jnp.asarray, params)
    if not args.resume:
        muon = optim.MATRICES + (optim.EXPERTS if args.muon_experts else ())
        state = optim.init(params, muon)
    state["l1"] = jnp.asarray(progress.get("l1", [1e-3] * cfg.layers), jnp.float32)
    return cfg, params, state, progress if args.resume else {"step": 0, "seconds": 0.0}


def main():
    begin, args = time.time(), arguments()
    os.makedirs(args.out, exist_ok=True)
    tokenizer = Tokenizer.from_file(args.tokenizer)
    cfg, params, state, progress = start(args, tokenizer.get_vocab_size())
    n, begin = progress["step"], begin - progress["seconds"]

    mix = data.MIXES[args.mix]
    raw = shards.batches(args.shards, mix, args.batch // args.group, args.group, n)
    stream = shards.ahead((rows, data.loss_weights(tokenizer, rows, args.prompt_weight), np.repeat(domains, args.group))
                          for rows, domains in raw)
    how = model.Compute(args.dtype, args.block, args.flash)
    order, balanced = row_order(args.balance, args.batch, args.group, args.balance_groups)
    step = make_step(cfg, how, order, balanced, args.q4)

    def done():
        """Seconds and share of the stage that have passed."""
        seconds = time.time() - begin
        return seconds, max(n / args.steps, seconds / (args.minutes * 60))

    def save(name, full=False):
        """Write a checkpoint of this moment to --out."""
        progress = {"step": n, "seconds": time.time() - begin, "l1": np.asarray(state["l1"]).tolist()}
        store.save(os.path.join(args.out, name), cfg, params, progress, state if full else None)

    log, tokens, saved = None, 0, progress["seconds"]
    kept = due(done()[1], args.snapshots) if args.resume else 0  # of before stay as they are
    while (passed := done())[1] < 1:
        seconds, share = passed
        rows, weights, domains = next(stream)
        if log is None:
            tokens = rows.size - len(rows)
            print(f"{model.count(params):,} parameters on {jax.devices()}, {tokens} tokens a step", flush=True)
            log = Log(os.path.join(args.out, "log.jsonl"), mix, rows.shape[1] - 1)
        scale = args.lr * schedule(n, share, args.warmup, args.decay, args.final)
        hyper = {"scale": scale, "balance": args.balance_weight, "sparsity": args.sparsity}
        params, state, seen = step(params, state, rows, weights, {k: np.float32(v) for k, v in hyper.items()})
        log.add(seen, domains)
        n += 1
        if n % args.log_steps == 0:
            log.write(n, seconds, scale)
        if kept < due(share, args.snapshots):
            save(f"weights.{kept}.npz")
            kept += 1
        if seconds - saved > args.checkpoint_minutes * 60:
            saved = seconds
            save("checkpoint.npz", full=True)
    save("checkpoint.npz", full=True)
    if args.snapshots:
        save(f"weights.{args.snapshots - 1}.npz")
    print(f"done: {n} steps, {n * tokens:,} tokens", flush=True)


if __name__ == "__main__":
    main()
