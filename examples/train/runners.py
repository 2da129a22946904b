"""Two ways to run a model for evaluate.py: the JAX graph, and the smallthinker package on a GGUF file.

Both give `logits(ids)` -> float32 [len(ids), vocab], `answers(questions, limit)` -> greedy texts up to <|im_end|> or
<|endoftext|> for questions (prompt, what the user says or None outside the chat form, ...), and `sample(prompt, limit, seed)`.
"""
import json
import os

import numpy as np
from tokenizers import Tokenizer

STOP = ("<|im_end|>", "<|endoftext|>")


class JaxModel:
    """model.py on a Hugging Face directory, batched. Rows are padded to powers of two and positions to multiples of 64,
    so that few shapes are compiled."""

    def __init__(self, path):
        import jax
        import model
        from safetensors.numpy import load_file
        with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
            c = json.load(f)
        self.tokenizer = Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
        self.stop = {self.tokenizer.token_to_id(s) for s in STOP}
        self.cfg = cfg = model.Config(
            vocab=c["vocab_size"], layers=c["num_hidden_layers"], hidden=c["hidden_size"],
            heads=c["num_attention_heads"], kv_heads=c["num_key_value_heads"], head_dim=c["head_dim"],
            ffn=c["moe_ffn_hidden_size"],
            experts=c["moe_num_primary_experts"], top_k=c["moe_num_active_primary_experts"],
            window=c["sliding_window_size"], rope_theta=c["rope_theta"], eps=c["rms_norm_eps"])
        w = load_file(os.path.join(path, "model.safetensors"))
        layer = lambda name: np.stack([w[f"model.layers.{i}.{name}.weight"] for i in range(cfg.layers)])
        moe = "block_sparse_moe."
        params = {
            "embed": w["model.embed_tokens.weight"], "norm": w["model.norm.weight"],
            **{n: layer(f"self_attn.{n}_proj") for n in "qkvo"}, "router": layer(moe + "primary_router"),
            "attn_norm": layer("input_layernorm"), "ffn_norm": layer("post_attention_layernorm"),
            **{n: np.stack([layer(f"{moe}experts.{e}.{n}") for e in range(cfg.experts)], 1)
               for n in ("gate", "up", "down")}}
        self.params = {k: jax.numpy.asarray(v) for k, v in params.items()}
        self.forward = jax.jit(lambda p, t: model.logits(cfg, p, t))
        self.next = jax.jit(lambda p, t, at: jax.numpy.argmax(
            model.logits(cfg, p, t)[jax.numpy.arange(t.shape[0]), at], -1))

    def logits(self, ids):
        """float32 [len(ids), vocab]."""
        padded = -(-len(ids) // 256) * 256
        tokens = np.zeros((1, padded), np.int32)
        tokens[0, : len(ids)] = ids
        return np.asarray(self.forward(self.params, tokens))[0, : len(ids)]

    def answers(self, questions, limit):
        """Greedy answers; each step recomputes the whole batch."""
        prompts = [self.tokenizer.encode(q[0]).ids for q in questions]
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
                if chosen[i] in self.stop:
                    open_.remove(i)
                else:
                    out[i].append(int(chosen[i]))
            if not open_:
                break
            at = np.minimum(at + 1, width - 1)
            tokens[np.arange(rows), at] = chosen
        return [self.tokenizer.decode(ids) for ids in out]

    def sample(self, prompt, limit, seed):
        """Greedy: only the engine samples."""
        return self.answers([(prompt, None)], limit)[0]


class EngineModel:
    """The smallthinker Python package on a GGUF file."""

    def __init__(self, path, **options):
        import smallthinker
        self.model = smallthinker.Model(path, **options)

    def logits(self, ids):
        """float32 [len(ids), vocab]."""
        return self.model.logits(ids)

    def answers(self, questions, limit):
        """Greedy answers; special tokens belong to the chat template, a prompt cannot write them."""
        options = {"max_tokens": limit, "temperature": 0}
        return [self.model.generate(prompt, **options).text if user is None
                else self.model.chat([{"role": "user", "content": user}], **options).text for prompt, user, *_ in questions]

    def sample(self, prompt, limit, seed, temperature=0.7):
        """A continuation drawn at `temperature`."""
        return self.model.generate(prompt, max_tokens=limit, temperature=temperature, seed=seed).text
