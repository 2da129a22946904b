"""Held-out bits per byte and exact match on the generated tasks.

    python evaluate.py run/hf                        # the JAX model on an exported directory
    python evaluate.py run/hf --engine MODEL.gguf    # the same questions through the smallthinker package

Bits per byte: the summed -log2 p of every token of a document and of the <|endoftext|> after it, over the document's
UTF-8 bytes; each document is scored alone, its first token is given (nothing precedes it). Exact match: the greedy
answer, stripped, equals the expected one; held-out sums use operand pairs that training never saw. `plain_sums` are
prompts outside the chat form: "47 + 38 =".
"""
import argparse
import itertools
import json
import os
import random

import numpy as np
from tokenizers import Tokenizer

import chat
import data

STORY_PROMPTS = ["Once upon a time", "One day, Tom and his sister", "The sun was", "The little fox was called",
                 "It was a rainy morning, and Lily the"]


class JaxModel:
    """model.py on a Hugging Face directory, batched. Rows are padded to powers of two and positions to multiples of 64,
    so that few shapes are compiled."""

    def __init__(self, path):
        import jax
        import model
        from safetensors.numpy import load_file
        with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
            c = json.load(f)
        self.cfg = cfg = model.Config(
            vocab=c["vocab_size"], layers=c["num_hidden_layers"], hidden=c["hidden_size"],
            heads=c["num_attention_heads"], kv_heads=c["num_key_value_heads"], head_dim=c["head_dim"],
            ffn=c["moe_ffn_hidden_size"],
            experts=c["moe_num_primary_experts"], top_k=c["moe_num_active_primary_experts"],
            window=c["sliding_window_size"], rope_theta=c["rope_theta"], eps=c["rms_norm_eps"])
        w = load_file(os.path.join(path, "model.safetensors"))
        layer = lambda name: np.stack([w[f"model.layers.{i}.{name}.weight"] for i in range(cfg.layers)])
        moe = "block_sparse_moe."
        self.params = {
            "embed": w["model.embed_tokens.weight"], "norm": w["model.norm.weight"],
            **{n: layer(f"self_attn.{n}_proj") for n in "qkvo"}, "router": layer(moe + "primary_router"),
            "attn_norm": layer("input_layernorm"), "ffn_norm": layer("post_attention_layernorm"),
            **{n: np.stack([layer(f"{moe}experts.{e}.{n}") for e in range(cfg.experts)], 1)
               for n in ("gate", "up", "down")}}
        self.params = {k: jax.numpy.asarray(v) for k, v in self.params.items()}
        self.forward = jax.jit(lambda p, t: model.logits(cfg, p, t))
        self.next = jax.jit(lambda p, t, at: jax.numpy.argmax(
            model.logits(cfg, p, t)[jax.numpy.arange(t.shape[0]), at], -1))

    def logits(self, ids):
        """float32 [len(ids), vocab]."""
        padded = -(-len(ids) // 128) * 128
        tokens = np.zeros((1, padded), np.int32)
        tokens[0, : len(ids)] = ids
        return np.asarray(self.forward(self.params, tokens))[0, : len(ids)]

    def greedy(self, prompts, limit, stop):
        """Greedy continuations of lists of ids, without the stop token; each step recomputes the whole batch."""
        lengths = np.asarray([len(p) for p in prompts])
        width = -(-(lengths.max() + limit) // 64) * 64
        rows = 1 << (len(prompts) - 1).bit_length()
        tokens = np.zeros((rows, width), np.int32)
        for i, p in enumerate(prompts):
            tokens[i, : len(p)] = p
        at = np.zeros(rows, np.int32)
        at[: len(prompts)] = lengths - 1
        out, open_ = [[] for _ in prompts], set(range(len(prompts)))
        for _ in range(limit):
            chosen = np.asarray(self.next(self.params, tokens, at))
            for i in list(open_):
                if chosen[i] in stop:
                    open_.remove(i)
                else:
                    out[i].append(int(chosen[i]))
            if not open_:
                break
            at = np.minimum(at + 1, width - 1)
            tokens[np.arange(rows), at] = chosen
        return out


class EngineModel:
    """The smallthinker Python package on a GGUF file."""

    def __init__(self, path):
        import smallthinker
        self.model = smallthinker.Model(path)

    def logits(self, ids):
        """float32 [len(ids), vocab]."""
        return self.model.logits(ids)

    def answer(self, user, limit):
        """Greedy chat answer."""
        turns = [{"role": "user", "content": user}]
        return self.model.chat(turns, max_tokens=limit, temperature=0).text

    def complete(self, prompt, limit):
        """Greedy continuation."""
        return self.model.generate(prompt, max_tokens=limit, temperature=0).text


def log2_probability(logits, targets):
    """Sum over rows of log2 softmax(logits)[target], in float64."""
    y = np.asarray(logits, np.float64)
    top = y.max(-1)
    total = top + np.log(np.exp(y - top[:, None]).sum(-1))
    return float((y[np.arange(len(targets)), targets] - total).sum() / np.log(2))


def bits_per_byte(model, tokenizer, n_documents, context=2048):
    """{domain: bits per byte} and 'total' weighted by bytes."""
    end, bits, size = tokenizer.token_to_id(data.END), {}, {}
    for domain in data.DOMAINS:
        for _, text in itertools.islice(data.documents("heldout", domain=domain), n_documents):
            ids = (tokenizer.encode(text).ids + [end])[:context]
            bits[domain] = bits.get(domain, 0.0) - log2_probability(model.logits(ids)[:-1], ids[1:])
            size[domain] = size.get(domain, 0) + len(text.encode())
    result = {d: bits[d] / size[d] for d in bits}
    result["total"] = sum(bits.values()) / sum(size.values())
    return result


def questions(n, seed=0):
    """{task: [(prompt text, user text or None, answer)]}, n of each, held-out operands for sums."""
    out = {}
    for name, task in chat.TASKS.items():
        rng = random.Random(f"smallthinker/heldout/evaluate/{seed}/{name}")
        pairs = [task(rng, True) for _ in range(n)]
        out[name] = [(chat.render([(q, a)], open_answer=True), q, a) for q, a in pairs]
    for name, sign in (("plain_addition", "+"), ("plain_subtraction", "-")):
        rng = random.Random(f"smallthinker/heldout/evaluate/{seed}/{name}")
        pairs = [chat.operands(rng, sign, True) for _ in range(n)]
        out[name] = [(f"{a} {sign} {b} =", None, str(a + b if sign == "+" else a - b)) for a, b in pairs]
    return out


def exact_match(model, tokenizer, n, limit=64):
    """({task: share of exact answers}, [(prompt, expected, got)] of some that were wrong)."""
    stop = {tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id(data.END)}
    shares, wrong = {}, []
    for name, items in questions(n).items():
        tokens = 6 if name.startswith("plain") else limit
        if isinstance(model, JaxModel):
            ids = model.greedy([tokenizer.encode(p).ids for p, _, _ in items], tokens, stop)
            got = [tokenizer.decode(i) for i in ids]
        else:
            got = [model.complete(p, tokens) if user is None else model.answer(user, tokens) for p, user, _ in items]
        got = [g.strip().split("\n")[0] if name.startswith("plain") else g.strip() for g in got]
        right = [g == a for g, (_, _, a) in zip(got, items)]
        shares[name] = float(np.mean(right))
        wrong += [(items[i][1] or items[i][0], items[i][2], got[i]) for i in range(len(items)) if not right[i]][:2]
    return shares, wrong


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("directory", help="Hugging Face directory (its tokenizer is used in both cases)")
    ap.add_argument("--engine", metavar="GGUF", help="score the smallthinker package on this file instead")
    ap.add_argument("--documents", type=int, default=200, help="held-out documents per domain")
    ap.add_argument("--questions", type=int, default=200, help="questions per task")
    ap.add_argument("--json", metavar="FILE", help="write the numbers there")
    a = ap.parse_args()
    tokenizer = Tokenizer.from_file(os.path.join(a.directory, "tokenizer.json"))
    model = EngineModel(a.engine) if a.engine else JaxModel(a.directory)

    bpb = bits_per_byte(model, tokenizer, a.documents) if a.documents else {}
    for domain, value in bpb.items():
        print(f"bits per byte  {domain:18} {value:.4f}", flush=True)
    shares, wrong = exact_match(model, tokenizer, a.questions) if a.questions else ({}, [])
    for name, value in shares.items():
        print(f"exact match    {name:18} {value:.3f}")
    for prompt, expected, got in wrong:
        print(f"  {prompt!r}: expected {expected!r}, got {got!r}")
    for prompt in STORY_PROMPTS:
        if a.engine:
            text = model.complete(prompt, 120)
        else:
            ids = model.greedy([tokenizer.encode(prompt).ids], 120, {tokenizer.token_to_id(data.END)})[0]
            text = tokenizer.decode(ids)
        print(f"\n{prompt}|{text}")
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump({"bits_per_byte": bpb, "exact_match": shares}, f, indent=2)


if __name__ == "__main__":
    main()
