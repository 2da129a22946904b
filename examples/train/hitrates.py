"""What an expert cache would do on held-out text of each domain: hit rates by policy and by share of experts resident.

    python hitrates.py MODEL.gguf [OTHER.gguf ...] --budgets 25%,50%,62% --json run/hitrates.json

The text goes through the model token by token, as in decoding (`smallthinker trace`), and the trace is replayed against each
policy of the cache and against Belady's, which knows the future (`smallthinker policies`). `all` is the domains' text in turn,
a few hundred tokens each, as a server would see it that serves different people.
"""
import argparse
import json
import os
import re
import tempfile

import smallthinker

import data
from evaluate import heldout


def texts(n_bytes, piece=1200):
    """{domain: held-out text}, and under 'all' pieces of all domains in turn."""
    out = {}
    for domain in data.DOMAINS:
        documents = [re.sub(r"<\|im_\w+\|>", "", d)[: n_bytes // 4] for d in heldout(domain, 4 * n_bytes)]  # no work fills all
        out[domain] = "\n\n".join(documents).encode()[:n_bytes].decode(errors="ignore")
    size = n_bytes // len(out)
    parts = [out[d][at: at + piece] for at in range(0, size, piece) for d in out]
    return out | {"all": "\n\n".join(parts)}


def hit_rates(path, text, budgets):
    """{policy: [hit rate by budget]} of one text, and how many tokens it had."""
    with tempfile.TemporaryDirectory() as tmp, smallthinker.Model(path) as model:
        trace = os.path.join(tmp, "text.trace")
        text = model.detokenize(model.tokenize(text)[: model.context_length - 8])  # cut anew, it may have a few tokens more
        smallthinker.trace(model, text, trace, max_tokens=0, prompt_tokens=1)
        found = smallthinker.policies(trace, budgets=budgets)
    rates = {}
    for replay in found["replays"]:
        rates.setdefault(replay["policy"], []).append(replay["hit_rate"])
    return rates, found["decode_tokens"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="+", metavar="GGUF")
    ap.add_argument("--budgets", default="25%,50%,62%", type=lambda s: s.split(","))
    ap.add_argument("--bytes", type=int, default=6000, help="of text per domain")
    ap.add_argument("--json", metavar="FILE")
    a = ap.parse_args()
    result = {}
    for domain, text in texts(a.bytes).items():
        for path in a.models:
            rates, tokens = hit_rates(path, text, a.budgets)
            result.setdefault(domain, {})[os.path.basename(path)] = rates | {"tokens": tokens}
            for policy, values in rates.items():
                line = " ".join(f"{b} {v:.3f}" for b, v in zip(a.budgets, values))
                print(f"{domain:8} {os.path.basename(path):28} {policy:8} {line}  ({tokens} tokens)", flush=True)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
