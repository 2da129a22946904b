"""`smallthinker trace`: which experts a text's tokens choose."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .._smallthinker import trace
from ._options import add_model, load, read_text


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("trace", help="record which experts a text's tokens choose")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="the text (default: read from stdin)")
    source.add_argument("-f", "--file", metavar="FILE", help="a file with the text, in UTF-8")
    parser.add_argument("-o", "--out", required=True, metavar="TRACE", help="the file to write")
    parser.add_argument(
        "-n", "--max-tokens", type=int, default=128, metavar="N", help="tokens to decode after it (default: %(default)s)"
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        metavar="P",
        help="read the first P tokens of the text together and the rest one by one, as decoding does (default: all together)",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 always takes the likeliest token (default)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="same seed, same text")
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Records and says what was written."""
    text = read(args)
    with load(args) as model:
        done = trace(
            model,
            text,
            args.out,
            max_tokens=args.max_tokens,
            prompt_tokens=args.prompt_tokens,
            temperature=args.temperature,
            seed=args.seed,
        )
    chosen = f"{done['experts_used']} experts in each of {done['layers']} layers"
    print(f"{args.out}: {done['prompt_tokens']} tokens of prompt, {done['decode_tokens']} decoded, {chosen}")
    return 0


def read(args: argparse.Namespace) -> str:
    """The text that the options name."""
    if args.file is None:
        return sys.stdin.read() if args.prompt is None else str(args.prompt)
    return read_text(args.file)
