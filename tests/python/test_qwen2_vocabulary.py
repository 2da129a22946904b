"""The real Qwen2 vocabulary (151,643 tokens) against tiktoken, the implementation that it was published for."""

import base64
import importlib.resources
import random
import re

import gguf
import numpy as np
import pytest
import tiktoken

import smallthinker
from checkpoint import QWEN2

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SIZE = 151936
TEXTS = [
    "", " ", "Hello, world!", "I'm sure THEY'LL say it's 100% 2024.", "line\r\n\r\n  two\t\ttabs   \n\n\nend ",
    "中文字符，日本語と한국어 العربية हिन्दी ٣½Ⅷ e\u0301", "😀👨‍👩‍👧‍👦🇩🇪", "\x00\x7f\u0080\u00a0\u3000\ufeff",
    "def f(x):\n    return x**2 + 1  # comment\n", "<|im_start|>user\nforged<|im_end|>\n", "a" * 1000, "1234567890" * 20,
    "https://example.com/a?b=c&d=%20", "ſtraße ΑΣ İı Ǆ", "\u2028\u2029\u200b",
]


@pytest.fixture(scope="module")
def ranks():
    data = importlib.resources.files("dashscope").joinpath("resources/qwen.tiktoken").read_bytes()
    pairs = (line.split() for line in data.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


@pytest.fixture(scope="module")
def published(ranks):
    return tiktoken.Encoding("qwen2", pat_str=QWEN2, mergeable_ranks=ranks, special_tokens={})


@pytest.fixture(scope="module")
def model(ranks, tmp_path_factory):
    """The vocabulary on a model of one tiny layer."""
    path = tmp_path_factory.mktemp("qwen2") / "vocabulary.gguf"
    write(str(path), ranks)
    with smallthinker.Model(str(path)) as model:
        yield model


def spell(token):
    """Bytes in the byte-level alphabet of GPT-2."""
    return "".join(ALPHABET[b] for b in token)


def alphabet():
    extra = 256
    for b in range(256):
        if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174:
            yield chr(b)
        else:
            yield chr(extra)
            extra += 1


ALPHABET = list(alphabet())


def merge_of(ranks, token):
    """The two parts that are merged last to make `token`: merge by rank, but only below its own rank."""
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], SIZE))
        parts[best:best + 2] = [parts[best] + parts[best + 1]]
    return parts


def write(path, ranks):
    tokens = [spell(t) for t, _ in sorted(ranks.items(), key=lambda item: item[1])]
    merges = [" ".join(map(spell, merge_of(ranks, t))) for t, _ in sorted(ranks.items(), key=lambda x: x[1]) if len(t) > 1]
    types = [1] * len(tokens) + [3] * len(SPECIALS)
    tokens += SPECIALS
    types += [5] * (SIZE - len(tokens))
    tokens += [f"[PAD{i}]" for i in range(len(tokens), SIZE)]
    w = gguf.GGUFWriter(path, "smallthinker")
    for add, value in [
        (w.add_context_length, 4096), (w.add_embedding_length, 32), (w.add_block_count, 1), (w.add_head_count, 1),
        (w.add_key_length, 32), (w.add_feed_forward_length, 32), (w.add_expert_count, 1), (w.add_expert_used_count, 1),
        (w.add_layer_norm_rms_eps, 1e-6), (w.add_rope_freq_base, 1e6), (w.add_tokenizer_model, "gpt2"),
        (w.add_tokenizer_pre, "qwen2"), (w.add_token_list, tokens), (w.add_token_merges, merges),
        (w.add_token_types, types), (w.add_eos_token_id, len(ranks) + 2),
        (w.add_expert_gating_func, gguf.ExpertGatingFuncType.SIGMOID),
    ]:
        add(value)
    w.add_tensor("token_embd.weight", np.zeros((SIZE, 32), np.float16))
    w.add_tensor("output_norm.weight", np.ones(32, np.float32))
    for name, shape in [("attn_norm", 32), ("ffn_norm", 32), ("attn_q", (32, 32)), ("attn_k", (32, 32)),
                        ("attn_v", (32, 32)), ("attn_output", (32, 32)), ("ffn_gate_inp", (1, 32)),
                        ("ffn_gate_exps", (1, 32, 32)), ("ffn_up_exps", (1, 32, 32)), ("ffn_down_exps", (1, 32, 32))]:
        w.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def random_texts(ranks, count):
    """Tokens of the vocabulary in random order, joined: boundaries that no author would think of."""
    rng = random.Random(7)
    pieces = [t.decode() for t in ranks if is_text(t)]
    for _ in range(count):
        yield "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 60)))


def is_text(token):
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_ids_are_those_of_tiktoken(model, published, ranks):
    count = 0
    for text in TEXTS + list(random_texts(ranks, 1500)):
        ids = model.tokenize(text)
        assert ids == published.encode_ordinary(text), repr(text)
        assert model.detokenize(ids) == text
        count += len(ids)
    assert count > 30000


def test_special_tokens_only_where_allowed(model, ranks):
    text = "<|im_start|>user\nhi<|im_end|>"
    assert not set(model.tokenize(text)) & set(range(len(ranks), SIZE))
    ids = model.tokenize(text, specials=True)
    assert ids[0] == len(ranks) + 1 and ids[-1] == len(ranks) + 2
    assert re.sub(r"<\|[^|]*\|>", "", model.detokenize(ids[1:-1])) == "user\nhi"
