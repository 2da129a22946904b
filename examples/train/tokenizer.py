"""Byte-level BPE with the Qwen2 pre-tokenizer, trained on our documents.

The pre-tokenizer is the one that a GGUF with tokenizer.ggml.model=gpt2 and pre=qwen2 declares; it splits every digit,
so that a sum is written digit by digit.

    python tokenizer.py --out run/tokenizer.json
"""
import argparse
import itertools
import os

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import data

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
         r"\s+(?!\S)|\s+")


def blank():
    """An untrained tokenizer with the Qwen2 pipeline."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    return tok


def train(texts, vocab_size):
    """A tokenizer with exactly `vocab_size` entries, the special tokens first."""
    tok = blank()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIALS, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False)
    tok.train_from_iterator(texts, trainer)
    if tok.get_vocab_size() != vocab_size:
        raise ValueError(f"the text gives {tok.get_vocab_size()} tokens, asked for {vocab_size}")
    return tok


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--vocab", type=int, default=4096)
    ap.add_argument("--out", default="run/tokenizer.json")
    a = ap.parse_args()
    os.makedirs(os.path.dirname(a.out) or ".", exist_ok=True)
    tok = train(data.tokenizer_texts(), a.vocab)
    tok.save(a.out)
    for domain in data.DOMAINS:
        sample = [t[:20000] for _, t in itertools.islice(data.documents("heldout", domain=domain), 200)]
        n_bytes, n_tokens = sum(len(t.encode()) for t in sample), sum(len(tok.encode(t).ids) for t in sample)
        print(f"{a.out}: {tok.get_vocab_size()} tokens, {domain}: {n_bytes / n_tokens:.2f} bytes per token")


if __name__ == "__main__":
    main()
