"""Greedy tokens against llama.cpp (the xllamacpp package) on the shipped model.

llama.cpp pins the attention window at 4096, so prompts and answers stay inside the model's own window.
"""

import json
import subprocess
import sys

import smallthinker

PROMPTS = [
    "Once upon a time", "There was a little", "One day, a girl named", "The old man went to", "In the morning, the",
    "A small dog lived", "Tom and his friend", "The bird was", "Every night the", "Far away, in a",
    "The king had a", "It was a cold day and", "Anna found a", "The cat looked at", "When the sun came up,",
    "My favorite thing is", "The boat was", "She gave him a", "After lunch they", "At the end of the",
]
TOKENS = 64
# A difference counts as a near-tie when our own logits of the two tokens are this close.
NEAR_TIE = 0.05

OTHER = """
import json, sys
import xllamacpp as xl
params = xl.CommonParams()
params.model.path, params.n_ctx, params.n_gpu_layers = sys.argv[1], 512, 0
params.cpuparams.n_threads = 2
server = xl.Server(params)
for prompt in json.loads(sys.argv[2]):
    answer = server.handle_completions({"prompt": prompt, "n_predict": int(sys.argv[3]), "temperature": 0,
                                        "top_k": 1, "logprobs": 1, "cache_prompt": False})
    entries = answer["choices"][0]["logprobs"]["content"]
    print("TOKENS", json.dumps([entry["id"] for entry in entries]), flush=True)
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


def test_greedy_tokens_agree_or_are_near_ties(model_path):
    with smallthinker.Model(model_path) as model:
        prompts = [prompt_of(model, text, seed) for seed, text in enumerate(PROMPTS)]
        command = [sys.executable, "-c", OTHER, model_path, json.dumps(prompts), str(TOKENS)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        theirs = [json.loads(line.removeprefix("TOKENS ")) for line in run.stdout.splitlines() if line.startswith("TOKENS")]
        assert len(theirs) == len(PROMPTS)
        same = 0
        for prompt, ids, other in zip(PROMPTS, prompts, theirs):
            session = model.session()
            session.append_tokens(ids)
            ours = session.generate(max_tokens=TOKENS, temperature=0).tokens
            n = min(len(ours), len(other))
            assert n > 0
            differ = [i for i in range(n) if ours[i] != other[i]]
            if not differ:
                same += 1
                continue
            at = differ[0]
            logits = model.logits(ids + ours[:at])[-1]
            gap = float(logits[ours[at]] - logits[other[at]])
            print(f"{prompt!r}: differs at token {at}: ours {ours[at]}, theirs {other[at]}, logits {gap:.4f} apart")
            assert logits.argmax() == ours[at]
            assert gap < NEAR_TIE
        print(f"{same} of {len(PROMPTS)} prompts agree in all of {TOKENS} tokens")
        assert same >= len(PROMPTS) // 2
