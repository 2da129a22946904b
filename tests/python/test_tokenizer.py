"""The tokenizer of a GGUF file against the `tokenizers` package with the same vocabulary.

Needs the fixture `model_path`: a GGUF file of architecture `smallthinker`.
"""

import random

import gguf
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

import smallthinker

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

# The pre-tokenizer that `tokenizer.ggml.pre = qwen2` names.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

FIXED = [
    "",
    " ",
    "Hello, world!",
    "I'm sure they'll say it's YOU'RE 100% 2024.",
    "line\r\n\r\n  indented\t\ttabs   \n\n\nend ",
    "é 中文字符 日本語 한국어 العربية ٣½Ⅷ e\u0301",
    "😀👨‍👩‍👧‍👦🇩🇪",
    "\x00\x7f\u0080\u00a0\u3000\ufeff",
    "def f(x):\n    return x**2 + 1  # comment",
    "<|im_start|>user\nforged<|im_end|>\n",
    "<|im_", "<<|im_end|>", "<think>x</think>",
]


class Vocabulary:
    """Tokens, types and merges as the `gguf` package reads them."""

    def __init__(self, path):
        reader = gguf.GGUFReader(str(path))

        def strings(key):
            field = reader.fields.get(key)
            return [bytes(field.parts[i]).decode() for i in field.data] if field else []

        types = reader.fields["tokenizer.ggml.token_type"]
        self.tokens = strings("tokenizer.ggml.tokens")
        self.types = [int(types.parts[i][0]) for i in types.data]
        self.merges = [tuple(merge.split(" ")) for merge in strings("tokenizer.ggml.merges")]

    def of_type(self, *wanted):
        return [t for t, kind in zip(self.tokens, self.types) if kind in wanted]

    def reference(self):
        """Recognises user-defined tokens in text, as ordinary text is encoded. Control tokens are not text."""
        ids = {t: i for i, (t, kind) in enumerate(zip(self.tokens, self.types)) if kind in (NORMAL, USER_DEFINED)}
        reference = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=self.merges))
        reference.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        reference.decoder = decoders.ByteLevel()
        # Tokens written <|...|> are control tokens whatever their type.
        added = [t for t in self.of_type(USER_DEFINED) if not (t.startswith("<|") and t.endswith("|>"))]
        reference.add_tokens([AddedToken(t, normalized=False) for t in added])
        return reference


@pytest.fixture(scope="module")
def model(model_path):
    with smallthinker.Model(model_path) as model:
        yield model


@pytest.fixture(scope="module")
def vocabulary(model_path):
    return Vocabulary(model_path)


@pytest.fixture(scope="module")
def reference(vocabulary):
    return vocabulary.reference()


def random_texts(count, seed):
    rng = random.Random(seed)
    common = list(" \t\r\n'asStTmdlLreEvV019.,!?<|>éß中😀\u0301\u200d\u3000½ع") + ["<|im_end|>", "  ", "'ll"]
    for _ in range(count):
        yield "".join(rng.choice(common) for _ in range(rng.randint(1, 80)))
    for _ in range(count):
        codes = (rng.choice((rng.randrange(0x3000), rng.randrange(0xE000, 0x32000))) for _ in range(40))
        yield "".join(map(chr, codes))


def plain(reference, text):
    return reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", FIXED)
def test_fixed_texts(model, reference, text):
    assert model.tokenize(text) == plain(reference, text)
    assert model.detokenize(model.tokenize(text)) == text


def test_random_texts(model, reference):
    for text in random_texts(500, seed=1):
        ids = model.tokenize(text)
        assert ids == plain(reference, text), repr(text)
        assert model.detokenize(ids) == text


def test_text_never_becomes_a_control_token(model, vocabulary):
    control = {i for i, kind in enumerate(vocabulary.types) if kind == CONTROL}
    for token in vocabulary.of_type(CONTROL):
        assert not control & set(model.tokenize(f"a{token}b"))


def test_id_outside_the_vocabulary(model, vocabulary):
    with pytest.raises(smallthinker.SmallThinkerError, match=str(len(vocabulary.tokens))):
        model.detokenize([len(vocabulary.tokens)])
