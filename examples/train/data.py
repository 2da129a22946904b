"""Documents of six domains and their token rows, for training and evaluation.

stories, maths and chat are generated, without end; prose and code are the real text of corpora.py; spanish is half and
half. Everything is deterministic in (split, seed). Training and held-out documents come from disjoint seeds and disjoint
works, and held-out sums from operand pairs that training never sees.

    python data.py --show 5 --domain chat                              # look at some documents
    python data.py --shards run/shards --plan pretrain:513 long:2049:16e6 chat:513:30e6 --workers 16
"""
import argparse
import hashlib
import itertools
import os
import random

import numpy as np

import chat
import corpora
import spanish
import stories
import tasks
from grammar import fill, pick
from words import in_words

END = "<|endoftext|>"
DOMAINS = {"stories": 0.18, "prose": 0.17, "maths": 0.15, "chat": 0.32, "code": 0.09, "spanish": 0.09}  # of the rows
CHAT_MIX = {"stories": 0.10, "prose": 0.10, "maths": 0.08, "chat": 0.62, "code": 0.05, "spanish": 0.05}  # tuning: chat and replay
LONG_MIX = {"stories": 0.10, "prose": 0.35, "maths": 0.05, "chat": 0.30, "code": 0.12, "spanish": 0.08}
MIXES = {"pretrain": DOMAINS, "chat": CHAT_MIX, "long": LONG_MIX}
REAL = {"prose": 1.0, "code": 1.0, "spanish": 0.5}  # share of rows that are windows of real text
PROMPT_WEIGHT = 0.2  # in the loss, what a user or system says counts less than what the model should say
SPLITS = ("train", "heldout")
CORPORA = os.environ.get("SMALLTHINKER_CORPORA") or os.path.join(os.path.dirname(os.path.abspath(__file__)), "run/corpora")


def maths_page(rng, held_out):
    """A plain document of sums and worked problems, one a line."""
    lines = []
    for _ in range(pick(rng, (1, 2, 4, 8))):
        r = rng.random()
        sign = pick(rng, "++--x")
        if r < 0.45:
            a, b = tasks.operands(rng, sign, held_out)
            lines.append(tasks.worked(a, sign, b))
        elif r < 0.53:
            a, b = tasks.operands(rng, sign, held_out)
            word, result = tasks.SIGNS[sign]
            lines.append(f"{in_words(a).capitalize()} {word} {in_words(b)} is {in_words(result(a, b))}.")
        else:
            q, a = tasks.TASKS[pick(rng, tasks.PAGE)](rng, held_out)
            lines.append(f"Question: {q}\nAnswer: {a}")
    return "\n".join(lines)


def generated(rng, domain, held_out, long=False):
    """One generated document of a domain."""
    if domain == "stories":
        return stories.story(rng) if not long else stories.long_story(rng)
    if domain == "maths":
        return "\n".join(maths_page(rng, held_out) for _ in range(12 if long else 1))
    if domain == "chat":
        return chat.long_conversation(rng, held_out) if long and rng.random() < 0.7 else chat.conversation(rng, held_out)
    return spanish.story(rng)


def documents(split, seed=0, domain=None, long=False):
    """Endless (domain, text) pairs; with `domain` only that one. Real works come whole, in shuffled order."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, must be one of {SPLITS}")
    rng = random.Random(f"smallthinker/{split}/{seed}/{domain}")
    names, shares = list(DOMAINS), list(DOMAINS.values())
    works = {}
    while True:
        chosen = domain or rng.choices(names, shares)[0]
        if rng.random() < REAL.get(chosen, 0):
            if not works.get(chosen):
                works[chosen] = [d["text"] for d in corpora.load(chosen, split, CORPORA)]
                rng.shuffle(works[chosen])
            yield chosen, works[chosen].pop()
        else:
            yield chosen, generated(rng, chosen, split == "heldout", long)


def tokenizer_texts(n_bytes=3_000_000, seed=1):
    """Training texts for the tokenizer, about n_bytes of each domain in turn, long works cut into pieces."""
    for domain in DOMAINS:
        size = 0
        for _, text in documents("train", seed, domain):
            for start in range(0, len(text), 4000):
                piece = text[start: start + 4000]
                size += len(piece.encode())
                yield piece
            if size > n_bytes:
                break


def real_tokens(tokenizer, domain, split):
    """All real text of a domain as one uint16 stream, works joined by <|endoftext|>; encoded once, then kept in a file."""
    key = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:8]
    path = os.path.join(CORPORA, f"{domain}.{split}.{key}.npy")
    if not os.path.exists(path):
        texts = [d["text"] + END for d in corpora.load(domain, split, CORPORA)]
        order = random.Random(f"smallthinker/{domain}")
        order.shuffle(texts)
        ids = np.concatenate([np.asarray(e.ids, np.uint16) for e in tokenizer.encode_batch(texts)])
        np.save(f"{path}.{os.getpid()}.npy", ids)
        os.replace(f"{path}.{os.getpid()}.npy", path)
    return np.load(path, mmap_mode="r")


def windows(stream, seed, length, n_rows):
    """Rows `seed * n_rows` and following of an endless series of windows: every epoch covers the stream once, in another
    order and from another start."""
    count = (len(stream) - length) // length
    out = np.empty((n_rows, length), np.uint16)
    epoch = None
    for r in range(n_rows):
        e, k = divmod(seed * n_rows + r, count)
        if e != epoch:
            rng, epoch = np.random.default_rng([e, length]), e
            start, order = rng.integers(length), rng.permutation(count)
        at = start + order[k] * length
        out[r] = stream[at: at + length]
    return out


def generated_rows(tokenizer, split, seed, length, n_rows, domain, long=False):
    """Rows of generated documents joined by <|endoftext|>; each row starts with a new one, so that position 0 is what a
    user's prompt will be; what does not fit is dropped."""
    end = tokenizer.token_to_id(END)
    rng = random.Random(f"smallthinker/{split}/{seed}/{domain}/rows")
    held_out = split == "heldout"
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)  # without offsets, where the library can
    out = np.empty((n_rows, length), np.uint16)
    done, row = 0, []
    while done < n_rows:
        batch = [generated(rng, domain, held_out, long) for _ in range(256)]
        for encoded in encode(batch):
            row += encoded.ids
            row.append(end)
            if len(row) >= length:
                out[done] = row[:length]
                done, row = done + 1, []
                if done == n_rows:
                    break
    return out


def rows(tokenizer, split, seed, length, n_rows, domain, long=False):
    """Token ids of one domain, uint16 [n_rows, length]."""
    n_real = round(n_rows * REAL.get(domain, 0))
    parts = []
    if n_real:
        parts.append(windows(real_tokens(tokenizer, domain, split), seed, length, n_real))
    if n_real < n_rows:
        parts.append(generated_rows(tokenizer, split, seed, length, n_rows - n_real, domain, long))
    return np.random.default_rng(seed).permutation(np.concatenate(parts)) if len(parts) > 1 else parts[0]


def loss_weights(tokenizer, rows, prompt=PROMPT_WEIGHT):
    """float32 [n, length]: weight of each token as a target, `prompt` from <|im_start|> of a user or system turn to its
    <|im_end|> and in '<|im_start|>assistant\\n', else 1."""
    rows = np.asarray(rows)
    start, stop = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
    head = tokenizer.encode("<|im_start|>assistant\n").ids
    at = np.arange(rows.shape[1])
    is_start = rows == start
    answer = is_start.copy()
    for k, token in enumerate(head[1:], 1):
        answer[:, :-k] &= rows[:, k:] == token
    last = lambda mask: np.maximum.accumulate(np.where(mask, at, -1), 1)
    opened, answered, stopped = last(is_start), last(answer), last(rows == stop)
    stopped = np.concatenate([np.full((len(rows), 1), -1), stopped[:, :-1]], 1)  # <|im_end|> itself belongs to the turn
    in_turn = opened > stopped
    in_answer = in_turn & (opened == answered) & (at - opened >= len(head))
    return np.where(in_turn & ~in_answer, np.float32(prompt), np.float32(1))


def _shard(job):
    path, tokenizer_path, split, seed, length, n_rows, domain, long = job
    from tokenizers import Tokenizer
    array = rows(Tokenizer.from_file(tokenizer_path), split, seed, length, n_rows, domain, long)
    np.save(path + ".tmp.npy", array)
    os.replace(path + ".tmp.npy", path)
    return path


def schedule(plan, n_rows, first=0):
    """Shards of a plan [(folder, mix, length, tokens), ...] as endless (folder, domain, number, mix, length): first one of
    every domain of every entry, then always what lags behind its share. `tokens` weighs the entries and, unless it is
    infinite, ends them."""
    made = [{d: 0 for d in MIXES[mix]} for _, mix, _, _ in plan]
    size = [n_rows * length for _, _, length, _ in plan]
    total = [min(tokens, 1e15) for *_, tokens in plan]
    finite = [t for t in total if t < 1e15]
    weight = [t if t < 1e15 else 10 * max(finite, default=1) for t in total]
    while True:
        open_ = [i for i in range(len(plan)) if sum(made[i].values()) * size[i] < total[i]]
        if not open_:
            return
        fresh = [i for i in open_ if 0 in made[i].values()]
        i = fresh[0] if fresh else min(open_, key=lambda i: sum(made[i].values()) * size[i] / weight[i])
        folder, mix, length, _ = plan[i]
        domain = min(made[i], key=lambda d: (made[i][d] + 0.5 if made[i][d] else 0) / MIXES[mix][d])
        yield folder, domain, first + made[i][domain], mix, length
        made[i][domain] += 1


def write_shards(plan, tokenizer_path, n_rows, workers, split="train", first=0):
    """Write `FOLDER/{domain}.{i:05d}.npy`, uint16 [n_rows, length], for a plan as in `schedule`, with a pool of processes.
    Yields paths. File i of a domain depends on i, n_rows and length alone; files that exist are left."""
    import multiprocessing
    from tokenizers import Tokenizer
    for domain in REAL:
        real_tokens(Tokenizer.from_file(tokenizer_path), domain, split)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # in the pool's processes, which are many already

    def jobs():
        for folder, domain, seed, mix, length in schedule(plan, n_rows, first):
            path = os.path.join(folder, f"{domain}.{seed:05}.npy")
            if not os.path.exists(path):
                yield path, tokenizer_path, split, seed, length, n_rows, domain, mix == "long"

    for folder, *_ in plan:
        os.makedirs(folder, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        source = jobs()
        while block := list(itertools.islice(source, 2 * workers)):
            yield from pool.imap_unordered(_shard, block)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--split", default="train", choices=SPLITS)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--domain", choices=list(DOMAINS))
    ap.add_argument("--long", action="store_true")
    ap.add_argument("--show", type=int, default=5, help="print this many documents")
    ap.add_argument("--shards", metavar="DIR", help="write shards of token rows to DIR/MIX/ instead")
    ap.add_argument("--plan", nargs="+", default=["pretrain:513"], metavar="MIX:LENGTH[:TOKENS]",
                    help="mix pretrain, long or chat, tokens a row, and how many tokens (without it: until stopped)")
    ap.add_argument("--tokenizer", default="run/tokenizer.json")
    ap.add_argument("--rows", type=int, default=512, help="rows a file")
    ap.add_argument("--workers", type=int, default=os.cpu_count())
    a = ap.parse_args()
    if a.shards:
        plan = []
        for entry in a.plan:
            mix, length, *tokens = entry.split(":")
            plan.append((os.path.join(a.shards, mix), mix, int(length), float(tokens[0]) if tokens else float("inf")))
        for path in write_shards(plan, a.tokenizer, a.rows, a.workers, a.split, a.seed):
            print(path, flush=True)
        return
    source = documents(a.split, a.seed, a.domain, a.long)
    for _ in range(a.show):
        domain, text = next(source)
        print(f"--- {domain}\n{text[:3000]}\n")


if __name__ == "__main__":
    main()
