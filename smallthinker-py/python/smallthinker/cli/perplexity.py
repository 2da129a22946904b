"""`smallthinker perplexity`: how well a model predicts a text."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .._smallthinker import perplexity
from ._options import add_model, load, read_text
from ._progress import bar


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("perplexity", help="measure how well a model predicts a text")
    parser.add_argument("file", metavar="FILE", help="the text, in UTF-8 (- reads stdin)")
    parser.add_argument(
        "--window", type=int, metavar="N", help="positions per window (default: 2048, or the model's context if less)"
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="tokens between the beginnings of windows (default: half a window)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Scores and prints."""
    text = read_text(args.file)
    with load(args) as model, bar("scoring") as progress:
        found = perplexity(model, text, context=args.window, stride=args.stride, progress=progress)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"bits per byte  {found['bits_per_byte']:.4f}, {found['bytes']} bytes")
    per_token = f"{found['tokens']} tokens, {found['bits_per_token']:.4f} bits each"
    print(f"perplexity     {found['perplexity']:.4f}, {per_token}")
    start = "BOS first" if found["bos"] else "no BOS"
    print(f"windows        {found['windows']} of {found['context']} positions, {found['stride']} apart, {start}")
    return 0
