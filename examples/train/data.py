"""Documents for training and evaluation: stories, pages of sums, conversations.

Deterministic in (split, seed). Training and held-out documents come from disjoint seeds, and held-out sums from
operand pairs that training never sees.

    python data.py --show 5                     # look at some documents
    python data.py --documents 100000 --out corpus.txt
"""
import argparse
import random

import chat
import stories

END = "<|endoftext|>"
DOMAINS = {"stories": 0.12, "sums": 0.20, "chat": 0.68}  # shares of documents; stories are the longest
PROMPT_WEIGHT = 0.2  # in the loss, what a user or system says counts less than what the model should say
SPLITS = ("train", "heldout")


def document(rng, domain, held_out):
    """One document of a domain."""
    if domain == "stories":
        return stories.story(rng)
    if domain == "sums":
        return chat.sums_page(rng, held_out)
    return chat.conversation(rng, held_out)


def documents(split, seed=0, domain=None):
    """Endless (domain, text) pairs; with `domain` only that one."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, must be one of {SPLITS}")
    rng = random.Random(f"smallthinker/{split}/{seed}/{domain}")
    names, weights = list(DOMAINS), list(DOMAINS.values())
    while True:
        chosen = domain or rng.choices(names, weights)[0]
        yield chosen, document(rng, chosen, split == "heldout")


def rows(tokenizer, split, seed, length, n_rows, domain=None):
    """Token ids, a list of n_rows lists of `length`. <|endoftext|> joins documents; each row starts with a new one.

    Starting each row at a document keeps position 0 what a user's prompt will be. The rest of a document that does not
    fit its row is dropped.
    """
    end = tokenizer.token_to_id(END)
    source = documents(split, seed, domain)
    out, row = [], []
    while len(out) < n_rows:
        batch = [next(source)[1] for _ in range(512)]
        for encoded in tokenizer.encode_batch(batch):
            row += encoded.ids + [end]
            if len(row) >= length:
                out.append(row[:length])
                row = []
    return out[:n_rows]


def loss_weights(tokenizer, row):
    """Weight of each token of a row as a target: PROMPT_WEIGHT inside user and system turns, else 1."""
    start, stop = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
    assistant = tokenizer.encode("assistant").ids[0]
    weights, prompt = [], False
    for i, token in enumerate(row):
        if token == start:
            prompt = i + 1 < len(row) and row[i + 1] != assistant
        weights.append(PROMPT_WEIGHT if prompt else 1.0)
        if token == stop:
            prompt = False
    return weights


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--split", default="train", choices=SPLITS)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--domain", choices=list(DOMAINS))
    ap.add_argument("--show", type=int, default=5, help="print this many documents")
    ap.add_argument("--documents", type=int, help="write this many documents to --out")
    ap.add_argument("--out", default="corpus.txt")
    a = ap.parse_args()
    source = documents(a.split, a.seed, a.domain)
    if a.documents:
        with open(a.out, "w", encoding="utf-8") as f:
            for _ in range(a.documents):
                f.write(next(source)[1] + END + "\n")
        return
    for _ in range(a.show):
        domain, text = next(source)
        print(f"--- {domain}\n{text}\n")


if __name__ == "__main__":
    main()
