"""Greedy tokens against llama.cpp (the xllamacpp package) on the shipped model.

llama.cpp pins the attention window at 4096, so prompts and answers stay inside the model's own window. Both engines
round activations to 8 bits, each its own way, which can tip a near-tie: of two tokens, or of two experts in a router.
Where they differ, the JAX reference, which rounds nothing, must side with us or call it a tie.
"""

import json
import subprocess
import sys

import checkpoint
import smallthinker
from test_reference import reference_logits

PROMPTS = [
    "Once upon a time", "There was a little", "One day, a girl named", "The old man went to", "In the morning, the",
    "A small dog lived", "Tom and his friend", "The bird was", "Every night the", "Far away, in a",
    "The king had a", "It was a cold day and", "Anna found a", "The cat looked at", "When the sun came up,",
    "My favorite thing is", "The boat was", "She gave him a", "After lunch they", "At the end of the",
]
TOKENS = 64
# Two tokens are nearly tied when the reference's logits are this close, in deviations of all its logits.
NEAR_TIE = 0.025
STOP = -1

OTHER = """
import json, sys
import xllamacpp as xl
params = xl.CommonParams()
params.model.path, params.n_ctx, params.n_gpu_layers = sys.argv[1], 512, 0
params.cpuparams.n_threads = 2
server = xl.Server(params)
for prompt in json.load(sys.stdin):
    answer = server.handle_completions({"prompt": prompt, "n_predict": int(sys.argv[2]), "temperature": 0,
                                        "top_k": 1, "logprobs": 1, "cache_prompt": False})
    logprobs = answer["choices"][0]["logprobs"] or {}  # none for an empty answer
    print("TOKENS", json.dumps([entry["id"] for entry in logprobs.get("content") or []]), flush=True)
"""


def prompt_of(model, text, seed):
    """A prompt of `TOKENS` tokens: the text and what the model makes of it at some temperature."""
    ids = model.tokenize(text)
    while len(ids) < TOKENS:
        session = model.session()
        session.append_tokens(ids)
        ids += session.generate(max_tokens=TOKENS - len(ids), temperature=0.8, seed=seed).tokens
        if len(ids) < TOKENS:
            ids += model.tokenize("\n" + text)
    return ids[:TOKENS]


def until_stop(tokens, stops):
    """The first `TOKENS` tokens, or those before a stop token and `STOP`."""
    end = next((i for i, t in enumerate(tokens) if t in stops), len(tokens))
    return (tokens[:end] + [STOP])[:TOKENS]


def test_greedy_tokens_agree_or_are_near_ties(model_path, tmp_path):
    checkpoint.export(model_path, tmp_path / "hf")
    with smallthinker.Model(model_path) as model:
        prompts = [prompt_of(model, text, seed) for seed, text in enumerate(PROMPTS)]
        command = [sys.executable, "-c", OTHER, model_path, str(TOKENS)]
        run = subprocess.run(command, input=json.dumps(prompts), capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        theirs = [json.loads(line.removeprefix("TOKENS ")) for line in run.stdout.splitlines() if line.startswith("TOKENS")]
        assert len(theirs) == len(PROMPTS)
        same, stops = 0, model.tokenize("<|im_end|><|endoftext|>", specials=True)
        for prompt, ids, other in zip(PROMPTS, prompts, theirs):
            session = model.session()
            session.append_tokens(ids)
            ours = session.generate(max_tokens=TOKENS, temperature=0).tokens
            ours, other = until_stop(ours, stops), until_stop(other, stops)
            if ours == other:
                same += 1
                continue
            at = next(i for i, (a, b) in enumerate(zip(ours, other)) if a != b)
            context = ids + ours[:at]
            reference = reference_logits(tmp_path / "hf", context, tmp_path / "logits.npy")[-1]
            value = lambda logits, token: max(logits[stops]) if token == STOP else logits[token]  # noqa: E731
            gap, true_gap = (float(value(y, ours[at]) - value(y, other[at])) for y in (model.logits(context)[-1], reference))
            print(f"{prompt!r}: differs at token {at}: ours {ours[at]}, theirs {other[at]}; "
                  f"ours is ahead by {gap:.4f} in our logits, by {true_gap:.4f} in the reference's")
            assert gap >= 0
            assert true_gap > -NEAR_TIE * reference.std()
        print(f"{same} of {len(PROMPTS)} prompts agree in all of {TOKENS} tokens")
        assert same >= len(PROMPTS) // 2
