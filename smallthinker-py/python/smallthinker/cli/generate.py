"""`smallthinker generate`: continues a text."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ._options import add_model, add_sampling, load, sampling, speed_lines, write


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("generate", help="continue a text", description="Continue a text: print what follows it.")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text (default: read from stdin)")
    add_sampling(parser, max_tokens=256)
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints what follows the prompt."""
    prompt = sys.stdin.read().rstrip("\n") if args.prompt is None else args.prompt
    with load(args) as model, model.stream(prompt, **sampling(args)) as stream:
        for piece in stream:
            write(piece)
        write("\n")
        if args.stats:
            print(speed_lines(stream.stats), file=sys.stderr)
    return 0
