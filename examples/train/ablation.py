"""How specialised the experts of one or more runs are, on held-out text of every domain: JSON and plots.

    for b in groups sequence; do python train.py --out run/$b --balance $b --steps 1000; done
    python ablation.py groups=run/groups sequence=run/sequence --out run/ablation

Per run: activation frequency per layer, domain and expert (the share of tokens that use an expert; the mean is
top_k / experts), the share of frequencies under 0.14, how far domains are apart (total variation between the routing
of two domains, 0 = the same experts, 1 = none in common; mean over pairs and layers), the share of experts that the
busiest quarter of a domain's experts gets, ReLU sparsity per layer, and held-out loss in nats per token.
"""
import argparse
import functools
import itertools
import json
import os

import jax
import numpy as np
from tokenizers import Tokenizer

import store
import data
import model
import figures

THRESHOLD = 0.14  # the paper's line between rarely and often used, a little above 4 / 32


def measure(cfg, params, rows, how=model.Compute(), batch=16):
    """(frequency [layers, experts], sparsity [layers], nats per token) over token rows [n, length + 1]."""
    forward = jax.jit(functools.partial(model.nats, cfg, how=how))
    share, sparsity, nats = [], [], []
    for i in range(0, len(rows), batch):
        x = np.asarray(rows[i : i + batch], np.int32)
        loss, report = forward(params, x[:, :-1], x[:, 1:])
        share.append(np.asarray(report["share"]).mean(1))
        sparsity.append(np.asarray(report["sparsity"]))
        nats.append(float(loss.mean()))
    return np.mean(share, 0) * cfg.top_k, np.mean(sparsity, 0), float(np.mean(nats))


def summary(cfg, frequency, sparsity, nats):
    """What the module's text promises, of {domain: ...} measurements."""
    f = np.stack(list(frequency.values()))  # [domains, layers, experts]
    routing = f / cfg.top_k
    apart = [np.abs(a - b).sum(-1).mean() / 2 for a, b in itertools.combinations(routing, 2)]
    busiest = -np.sort(-routing, -1)[..., : cfg.experts // 4].sum(-1)
    return {
        "domains": list(frequency), "layers": cfg.layers, "experts": cfg.experts, "top_k": cfg.top_k,
        "share_under_0.14": float((f < THRESHOLD).mean()),
        "share_under_0.14_over_all_domains": float((f.mean(0) < THRESHOLD).mean()),
        "domains_apart": float(np.mean(apart)) if apart else 0.0,
        "load_of_busiest_quarter": float(busiest.mean()),
        "sparsity_per_layer": np.mean(list(sparsity.values()), 0).round(4).tolist(),
        "median_sparsity": float(np.median(np.mean(list(sparsity.values()), 0))),
        "nats": nats | {"mean": float(np.mean(list(nats.values())))},
        "frequency": {d: x.round(5).tolist() for d, x in frequency.items()},
        "sparsity": {d: x.round(5).tolist() for d, x in sparsity.items()},
    }


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="folders that train.py wrote, or .npz files")
    ap.add_argument("--tokenizer", default="run/tokenizer.json")
    ap.add_argument("--rows", type=int, default=64, help="held-out rows per domain")
    ap.add_argument("--length", type=int, default=512)
    ap.add_argument("--out", default="run/ablation")
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    tokenizer = Tokenizer.from_file(a.tokenizer)
    rows = {d: data.rows(tokenizer, "heldout", 0, a.length + 1, a.rows, d) for d in data.DOMAINS}
    results, logs = {}, {}
    for run in a.runs:
        name, _, path = run.partition("=")
        folder = os.path.isdir(path)
        cfg, params, _ = store.load_params(os.path.join(path, "checkpoint.npz") if folder else path)
        found = {d: measure(cfg, params, r) for d, r in rows.items()}
        results[name] = summary(cfg, *({d: f[i] for d, f in found.items()} for i in range(3)))
        if folder:
            with open(os.path.join(path, "log.jsonl"), encoding="utf-8") as f:
                logs[name] = [json.loads(line) for line in f]
        print(name, {k: v for k, v in results[name].items() if isinstance(v, float)}, results[name]["nats"], flush=True)
    with open(os.path.join(a.out, "ablation.json"), "w", encoding="utf-8") as f:
        json.dump(results, f)
    for name, result in results.items():
        figures.frequency(result, os.path.join(a.out, f"frequency-{name}.png"), name)
    figures.sparsity(results, os.path.join(a.out, "sparsity.png"))
    if logs:
        figures.loss(logs, os.path.join(a.out, "loss.png"))


if __name__ == "__main__":
    main()
