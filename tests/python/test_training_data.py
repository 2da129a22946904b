"""The data of `examples/train`: answers are right, held-out sums never occur in training, rows weigh what they should."""

import itertools
import pathlib
import random
import re
import sys

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples" / "train"))
import chat  # noqa: E402
import data  # noqa: E402
import grammar  # noqa: E402
import spanish  # noqa: E402
import stories  # noqa: E402
import tasks  # noqa: E402

EQUATION = re.compile(r"(\d+) ([-+x]) (\d+) = (\d+)")
OPERATION = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "x": lambda a, b: a * b}


def pairs(name, n=300, held_out=False):
    rng = random.Random(name)
    return [chat.TASKS[name](rng, held_out) for _ in range(n)]


@pytest.mark.parametrize("name", sorted(chat.TASKS))
def test_equations_in_answers_are_right(name):
    for held_out in (False, True):
        for question, answer in pairs(name, held_out=held_out):
            assert question and answer and answer == answer.strip()
            for a, sign, b, c in EQUATION.findall(answer):
                assert OPERATION[sign](int(a), int(b)) == int(c), (question, answer)


def test_programs_print_what_the_answer_says(capsys):
    for question, answer in pairs("program", 100):
        code = "\n".join(line for line in question.split("\n") if re.match(r"\w = |print", line))
        exec(code, {})  # three assignments and a print of our own making
        assert answer.endswith(f"It prints {capsys.readouterr().out.strip()}.")


def numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


def words(text):
    return re.findall(r"[A-Za-z-]+", text)


def test_answers_follow_from_questions():
    for q, a in pairs("sort"):
        assert numbers(a) == sorted(numbers(q))
    for q, a in pairs("compare"):
        assert numbers(a)[0] == (min if "smaller" in q else max)(numbers(q))
    for q, a in pairs("counting"):
        first, last = numbers(q)
        assert numbers(a) == list(range(first, last + 1) if first < last else range(first, last - 1, -1))
    for q, a in pairs("reverse"):
        assert words(a) == words(q.rsplit(": ", 1)[1])[::-1]
    for q, a in pairs("count_words"):
        listed = words(q.rsplit(": ", 1)[1])
        assert numbers(a)[-1] == len(listed) and words(a.rsplit(". ", 1)[0]) == listed
    for q, a in pairs("spelling"):
        assert a[:-1].replace("-", "") in q
    for q, a in pairs("where_is"):
        who = re.search(r"Where is (\w+)", q).group(1)
        last = re.findall(rf"{who} (?:went|walked|ran) to the (\w+)", q)[-1]
        assert a == f"{who} is in the {last}."
    for q, a in pairs("gives"):
        assert a.split()[0] == re.findall(r"to (\w+)\.", q)[-1]
    for q, a in pairs("repeat"):
        assert a in q


def test_held_out_sums_never_occur_in_training():
    rng = random.Random(3)
    seen = 0
    for domain, text in itertools.islice(data.documents("train", 7, "maths"), 400):
        seen += check_no_held_out(text)
    for _ in range(3000):
        seen += check_no_held_out(chat.conversation(rng, False))
    assert seen > 4000
    for name in ("addition", "subtraction", "multiplication"):
        for _, answer in pairs(name, held_out=True):
            a, sign, b = re.match(r"(\d+) (.) (\d+)", answer).groups()
            if " + " not in answer or sign == "+":  # else a product by steps, whose factors the answer does not name
                assert tasks.is_held_out(int(a), int(b), sign)


def check_no_held_out(text):
    found = EQUATION.findall(text)
    for a, sign, b, _ in found:
        a, b = int(a), int(b)
        assert sign == "x" or max(a, b) > 99 or not tasks.is_held_out(a, b, sign), (a, sign, b)
    return len(found)


def test_one_pair_in_ten_is_held_out_either_way_round():
    for sign in "+-":
        share = np.mean([tasks.is_held_out(a, b, sign) for a in range(100) for b in range(100)])
        assert 0.08 < share < 0.12
    assert all(tasks.is_held_out(a, b, "+") == tasks.is_held_out(b, a, "+") for a in range(100) for b in range(100))


def test_translations_split_by_combination():
    kept = {(n, a) for n in spanish.NOUNS for a in spanish.ADJECTIVES if spanish.is_held_out(n, a)}
    assert 0.08 < len(kept) / (len(spanish.NOUNS) * len(spanish.ADJECTIVES)) < 0.12
    assert {n for n, _ in kept} == set(spanish.NOUNS)  # no word is held out altogether
    assert {a for _, a in kept} == set(spanish.ADJECTIVES)
    rng = random.Random(5)
    for _ in range(500):
        english, foreign = spanish.phrases(rng, False)
        assert not any(re.search(rf"\b{a} ({n}|{spanish.plural(n)})\b", english) for n, a in kept), english


def test_stories_fill_every_slot_and_repeat_their_hero():
    rng = random.Random(9)
    for _ in range(500):
        text = stories.story(rng, name="Zoe")
        assert not re.search(r"[{}<>|]", text) and "  " not in text
        assert "Zoe" in text
    assert len({stories.story(rng) for _ in range(500)}) == 500
    for _ in range(50):
        assert not re.search(r"[{}<>|]", spanish.story(rng))


def test_templates():
    rng = random.Random(1)
    seen = {grammar.expand(rng, "a <red|<old |>{x}> cup", {"x": "apple"}) for _ in range(200)}
    assert seen == {"a red cup", "an apple cup", "an old apple cup"}
    with pytest.raises(ValueError):
        grammar.parse("a <b|c")


def test_streams_depend_on_split_and_seed_alone():
    first = lambda *a: [t for _, t in itertools.islice(data.documents(*a), 5)]
    assert first("train", 3, "chat") == first("train", 3, "chat")
    assert first("train", 3, "chat") != first("train", 4, "chat")
    assert first("train", 3, "chat") != first("heldout", 3, "chat")


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte-like character, and the special tokens."""
    letters = sorted(set(map(chr, range(32, 127))) | {"\u010a", "\u0120"})
    tok = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="?"))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                                                 pre_tokenizers.Split("", "isolated")])
    tok.add_special_tokens([AddedToken(s, special=True) for s in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return tok


def naive_weights(tokenizer, row, prompt):
    """The same rule, token by token: prompt weight until an answer begins, and again after it ends."""
    start, stop = (tokenizer.token_to_id(f"<|im_{s}|>") for s in ("start", "end"))
    head = tokenizer.encode("<|im_start|>assistant\n").ids
    out, state, left = [], "plain", 0
    for i, token in enumerate(row):
        if token == start:
            state = "answer" if list(row[i: i + len(head)]) == head else "prompt"
            left = len(head)
        inside = state == "prompt" or (state == "answer" and left > 0)
        out.append(prompt if inside else 1.0)
        left -= 1
        if token == stop:
            state = "plain"
    return out


def test_loss_weights_agree_with_the_rule(tokenizer):
    rng, rows = random.Random(2), []
    for _ in range(40):
        ids = tokenizer.encode("<|endoftext|>".join(chat.conversation(rng, False) for _ in range(4))).ids
        at = rng.randrange(50)
        rows.append((ids * 2)[at if rng.random() < 0.3 else 0:][:300])
    for prompt in (0.0, 0.2):
        found = data.loss_weights(tokenizer, np.asarray(rows), prompt)
        for row, weights in zip(rows, found):
            start = row.index(tokenizer.token_to_id("<|im_start|>"))
            assert np.allclose(weights[start:], naive_weights(tokenizer, row[start:], prompt))


def test_generated_rows_begin_with_a_document(tokenizer):
    rows = data.rows(tokenizer, "train", 5, 257, 16, "chat")
    assert rows.shape == (16, 257) and rows.dtype == np.uint16
    assert (rows[:, 0] == tokenizer.token_to_id("<|im_start|>")).all()
    assert (rows == data.rows(tokenizer, "train", 5, 257, 16, "chat")).all()


def test_windows_cover_a_stream_once_an_epoch():
    stream = np.arange(10_050, dtype=np.uint16)
    count = (len(stream) - 100) // 100
    rows = data.windows(stream, 0, 100, count)
    assert (np.diff(rows.astype(int), axis=1) == 1).all()
    assert len(set(rows[:, 0])) == count and len(set(rows[:, 0] % 100)) == 1
    assert (data.windows(stream, 1, 100, count) != rows).any()
    assert (np.concatenate([data.windows(stream, s, 100, 11) for s in range(9)]) == rows).all()


def test_shards_grow_in_proportion():
    plan = [("p", "pretrain", 513, float("inf")), ("l", "long", 2049, 2e6), ("c", "chat", 513, 1e6)]
    jobs = list(itertools.islice(data.schedule(plan, 64), 2000))
    assert len({j[:3] for j in jobs}) == len(jobs)
    opening = jobs[: sum(len(data.MIXES[p[1]]) for p in plan)]
    assert len({j[:2] for j in opening}) == len(opening) and {j[2] for j in opening} == {0}
    pretrain = [j[1] for j in jobs if j[0] == "p"]
    for domain, share in data.DOMAINS.items():
        assert abs(pretrain.count(domain) / len(pretrain) - share) < 0.01
    tokens = sum(64 * j[4] for j in jobs if j[0] == "l")
    assert 2e6 <= tokens < 2e6 + 64 * 2049
