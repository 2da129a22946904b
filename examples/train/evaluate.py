"""Held-out bits per byte, exact match on the question types, and sample continuations.

    python evaluate.py run/hf                        # the JAX model on an exported directory
    python evaluate.py run/hf --engine MODEL.gguf    # the same through the smallthinker package

Bits per byte: the summed -log2 p of every token of a document and of the <|endoftext|> after it, over the document's
UTF-8 bytes. Documents are scored alone, long ones in windows that overlap by half; the first token of each is charged
log2(vocabulary). Beside it, for the same documents: a unigram model of bytes, fitted to training text of the domain, and
`xz -9` on all of them together. Exact match: the greedy answer, stripped, equals the expected one; held-out sums use
operand pairs, held-out translations combinations of words, that training never saw. `plain_*` are prompts outside the
chat form: "47 + 38 =".
"""
import argparse
import itertools
import json
import lzma
import os
import random

import numpy as np
from tokenizers import Tokenizer

import chat
import data
import tasks
from runners import EngineModel, JaxModel

PROMPTS = [
    "Once upon a time", "One day, Tom and his sister", "The sun was", "The little fox was called",
    "It was a rainy morning, and Lily the", "There once was an old clockmaker who", "\"Wake up, Nora!\" called her grandmother.",
    "Deep in the forest, the owl", "Oscar was a small boy who wanted to build a boat.", "In the village lived two friends,",
    "The bear had lost his", "Every evening, Clara looked out of the window and", "Long ago, a lonely shepherd",
    "\"Who took my bread?\" asked the baker.", "The snow fell all night.", "Ruby found a golden key",
    "Far away, near the harbour, there was a", "It was the first day of school, and Ben", "She was a young lady of",
    "The people of this country"]


def log2_probability(logits, targets):
    """log2 softmax(logits)[target] of every row, float64."""
    y = np.asarray(logits, np.float64)
    top = y.max(-1)
    total = top + np.log(np.exp(y - top[:, None]).sum(-1))
    return (y[np.arange(len(targets)), targets] - total) / np.log(2)


def document_bits(model, ids, context):
    """Bits of all tokens; windows of `context` tokens, of which all but the first see at least half a window before."""
    bits, done = 0.0, 1
    while done < len(ids):
        start = max(0, done - context // 2) if done > 1 else 0
        window = ids[start: start + context]
        logits = model.logits(window)
        if done == 1:
            bits += np.log2(logits.shape[1])
        scores = log2_probability(logits[done - 1 - start: -1], window[done - start:])
        bits -= scores.sum()
        done = start + len(window)
    return bits


def heldout(domain, n_bytes):
    """Held-out documents of a domain, about n_bytes of them; real works once each at the most."""
    texts, size, seen = [], 0, set()
    for _, text in data.documents("heldout", domain=domain):
        if text in seen and data.REAL.get(domain) == 1.0:
            break
        seen.add(text)
        texts.append(text)
        size += len(text.encode())
        if size >= n_bytes:
            break
    return texts


def byte_counts(texts):
    """How often each byte occurs, [256]."""
    return np.bincount(np.frombuffer("".join(texts).encode(), np.uint8), minlength=256)


def baselines(domain, texts):
    """Bits per byte of the unigram byte model and of xz -9."""
    train = list(itertools.islice((t for _, t in data.documents("train", domain=domain)), 500))
    p = byte_counts(train) + 1.0
    counts = byte_counts(texts)
    body = "".join(texts).encode()
    packed = len(lzma.compress(body, preset=9))
    return {"unigram": float(-(counts * np.log2(p / p.sum())).sum() / len(body)), "xz": 8 * packed / len(body)}


def bits_per_byte(model, tokenizer, n_bytes, context=1024, domains=tuple(data.DOMAINS)):
    """{domain: {"model", "unigram", "xz", "bytes", "documents"}}."""
    end, result = tokenizer.token_to_id(data.END), {}
    for domain in domains:
        texts = heldout(domain, n_bytes)
        size = sum(len(t.encode()) for t in texts)
        bits = sum(document_bits(model, tokenizer.encode(t).ids + [end], context) for t in texts)
        result[domain] = {"model": bits / size, **baselines(domain, texts), "bytes": size, "documents": len(texts)}
        print(f"{domain:9} " + " ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}"
                                        for k, v in result[domain].items()), flush=True)
    return result


def questions(n, seed=0):
    """{type: [(prompt, what the user says or None, answer)]}, n of each, held-out operands for sums."""
    out = {}
    for name, task in chat.TASKS.items():
        rng = random.Random(f"smallthinker/heldout/evaluate/{seed}/{name}")
        pairs = [task(rng, True) for _ in range(n)]
        out[name] = [(chat.render([(q, a)], open_answer=True), q, a) for q, a in pairs]
    for name, sign in (("plain_addition", "+"), ("plain_subtraction", "-")):
        rng = random.Random(f"smallthinker/heldout/evaluate/{seed}/{name}")
        pairs = [tasks.operands(rng, sign, True) for _ in range(n)]
        out[name] = [(f"{a} {sign} {b} =", None, str(a + b if sign == "+" else a - b)) for a, b in pairs]
    return out


def exact_match(model, n, seed=0, limit=96):
    """({type: share of exact answers}, [(prompt, expected, got)] of some that were wrong)."""
    shares, wrong = {}, []
    for name, items in questions(n, seed).items():
        plain = name.startswith("plain")
        got = [g.strip() for g in model.answers(items, 6 if plain else limit)]
        if plain:
            got = [g.split("\n")[0] for g in got]
        right = [g == a for g, (*_, a) in zip(got, items)]
        shares[name] = float(np.mean(right))
        print(f"{name:17} {shares[name]:.3f}", flush=True)
        wrong += [(items[i][1] or items[i][0], items[i][2], got[i]) for i in range(len(items)) if not right[i]][:3]
    return shares, wrong


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("directory", help="Hugging Face directory (its tokenizer is used in both cases)")
    ap.add_argument("--engine", metavar="GGUF", help="score the smallthinker package on this file instead")
    ap.add_argument("--threads", type=int, help="of the engine")
    ap.add_argument("--lm-head", help="of the engine: full or sparse")
    ap.add_argument("--bytes", type=int, default=100_000, help="held-out text per domain")
    ap.add_argument("--context", type=int, default=1024, help="window for long documents")
    ap.add_argument("--questions", type=int, default=200, help="per type")
    ap.add_argument("--samples", type=int, default=len(PROMPTS), help="continuations")
    ap.add_argument("--seed", type=int, default=0, help="of the questions and samples")
    ap.add_argument("--json", metavar="FILE", help="write everything there")
    a = ap.parse_args()
    tokenizer = Tokenizer.from_file(os.path.join(a.directory, "tokenizer.json"))
    options = {k: v for k, v in (("threads", a.threads), ("lm_head", a.lm_head)) if v}
    model = EngineModel(a.engine, **options) if a.engine else JaxModel(a.directory)

    bits = bits_per_byte(model, tokenizer, a.bytes, a.context) if a.bytes else {}
    shares, wrong = exact_match(model, a.questions, a.seed) if a.questions else ({}, [])
    for prompt, expected, got in wrong:
        print(f"  {prompt!r}: expected {expected!r}, got {got!r}")
    samples = [(p, model.sample(p, 120, a.seed + i)) for i, p in enumerate(PROMPTS[: a.samples])]
    for prompt, text in samples:
        print(f"\n{prompt}|{text}")
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump({"bits_per_byte": bits, "exact_match": shares, "wrong": wrong, "samples": samples}, f, indent=1,
                      ensure_ascii=False)


if __name__ == "__main__":
    main()
