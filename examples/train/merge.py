"""Linear merging: the mean of several checkpoints of one run, which is better than each.

    python merge.py run/chat/weights.*.npz --out run/merged.npz
    python merge.py run/chat/weights.*.npz --out run/merged.npz --parts run/part --limit 15   # also in parts of 15 MiB
"""
import argparse

import numpy as np

import store


def merge(checkpoints, shares=None):
    """The weighted mean of dicts of arrays; equal weights by default."""
    shares = shares or [1 / len(checkpoints)] * len(checkpoints)
    if len(shares) != len(checkpoints) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"{len(checkpoints)} checkpoints need as many shares with sum 1, not {shares}")
    return {k: sum(s * c[k].astype(np.float64) for s, c in zip(shares, checkpoints)).astype(np.float32)
            for k in checkpoints[0]}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoints", nargs="+")
    ap.add_argument("--shares", type=float, nargs="+", help="one per checkpoint, sum 1; default equal")
    ap.add_argument("--out", default="run/merged.npz")
    ap.add_argument("--parts", metavar="STEM", help="also STEM.0.npz, STEM.1.npz, ... in float16")
    ap.add_argument("--limit", type=float, default=15, help="MiB per part")
    a = ap.parse_args()
    loaded = [store.load_params(p) for p in a.checkpoints]
    cfg, progress = loaded[-1][0], loaded[-1][2]
    if any(c != cfg for c, _, _ in loaded):
        ap.error("the checkpoints have different configurations")
    params = merge([p for _, p, _ in loaded], a.shares)
    store.save(a.out, cfg, params, progress)
    if a.parts:
        store.save_parts(a.parts, cfg, params, progress, int(a.limit * 2**20))
    print(f"{a.out}: mean of {len(loaded)}, the last after {progress.get('step')} steps")


if __name__ == "__main__":
    main()
