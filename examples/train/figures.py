"""Pictures of training runs and of routing.

    python figures.py run/base/log.jsonl run/long/log.jsonl --out run/loss.png
"""
import argparse
import json
import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402


def frequency(result, path, title):
    """Activation frequency: one heat map of experts x domains per layer, experts ordered by their mean, and all
    frequencies of every domain in order."""
    domains, layers = result["domains"], result["layers"]
    f = np.asarray([result["frequency"][d] for d in domains])  # [domains, layers, experts]
    fig, axes = plt.subplots(layers + 1, 1, figsize=(9, 1.1 * layers * max(1, len(domains) / 6) + 3),
                             height_ratios=[1] * layers + [2.5], layout="constrained")
    for i, ax in enumerate(axes[:-1]):
        order = np.argsort(-f[:, i].mean(0))
        image = ax.imshow(f[:, i, order], aspect="auto", vmin=0, vmax=max(0.5, f.max() * 0.8), cmap="viridis")
        ax.set_yticks(range(len(domains)), domains, fontsize=6)
        ax.set_xticks([])
        ax.set_ylabel(f"layer {i}", fontsize=7)
    fig.colorbar(image, ax=axes[:-1], label="share of a domain's tokens that use the expert")
    for d, row in zip(domains, f):
        axes[-1].plot(np.linspace(0, 1, row.size), np.sort(row.ravel()), label=d)
    axes[-1].axhline(0.14, color="grey", ls=":", lw=1)
    axes[-1].set_xlabel("experts of all layers, in order")
    axes[-1].set_ylabel("activation frequency")
    axes[-1].legend(fontsize=6)
    fig.suptitle(f"{title}: {100 * result['share_under_0.14']:.0f} % of frequencies under 0.14, "
                 f"domains {result['domains_apart']:.2f} apart")
    fig.savefig(path, dpi=110)
    plt.close(fig)


def sparsity(results, path):
    """Share of zeros after ReLU per layer, one line per run and domain."""
    fig, axes = plt.subplots(1, len(results), figsize=(4.5 * len(results), 3.5), sharey=True, layout="constrained",
                             squeeze=False)
    for ax, (name, result) in zip(axes[0], results.items()):
        for d in result["domains"]:
            ax.plot(result["sparsity"][d], marker=".", label=d)
        ax.set(title=f"{name}: median {result['median_sparsity']:.2f}", xlabel="layer", ylim=(0, 1))
        ax.legend(fontsize=6)
    axes[0, 0].set_ylabel("ReLU sparsity")
    fig.savefig(path, dpi=110)
    plt.close(fig)


def loss(logs, path):
    """Training loss, smoothed, and median sparsity of {name: lines of log.jsonl} by step."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, lines in logs.items():
        if not lines:  # a run too short to have logged anything
            continue
        steps = [x["step"] for x in lines]
        width = max(1, len(lines) // 50)
        smooth = np.convolve([x["loss"] for x in lines], np.ones(width) / width, "valid")
        left.plot(steps[width - 1:], smooth, label=name)
        right.plot(steps, [np.median(x["sparsity"]) for x in lines], label=name)
    left.set(xlabel="step", ylabel="training loss, nats per token", yscale="log")
    right.set(xlabel="step", ylabel="median ReLU sparsity", ylim=(0, 1))
    left.legend()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("logs", nargs="+", help="log.jsonl files, named by their folders")
    ap.add_argument("--out", default="run/loss.png")
    a = ap.parse_args()
    logs = {}
    for path in a.logs:
        with open(path, encoding="utf-8") as f:
            logs[os.path.basename(os.path.dirname(os.path.abspath(path)))] = [json.loads(line) for line in f]
    loss(logs, a.out)


if __name__ == "__main__":
    main()
