"""`smallthinker heads`: what the sparse LM head loses and saves on a text."""

from __future__ import annotations

import argparse
import json
from typing import Any, List

from .._errors import InvalidArgument
from .._smallthinker import heads
from .._types import HeadQuality
from ._options import add_model, load, read_text, size
from ._progress import bar

SHARES = "0.5,1,2,5,10,20"


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("heads", help="compare the sparse LM head with the full one on a text")
    parser.add_argument("file", metavar="FILE", help="the text, in UTF-8 (- reads stdin)")
    parser.add_argument(
        "--shares", default=SHARES, metavar="LIST", help="fixed percentages of the rows to compare with (default: %(default)s)"
    )
    parser.add_argument(
        "--window", type=int, metavar="N", help="positions per window (default: 2048, or the model's context if less)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compares and prints."""
    text, shares = read_text(args.file), percentages(args.shares)
    args.lm_head = "sparse"
    with load(args) as model, bar("comparing") as progress:
        found = heads(model, text, shares=shares, context=args.window, progress=progress)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    predictor = f"{found['predictor']}, {size(found['predictor_bytes'])} of {size(found['head_bytes'])}"
    print(f"{found['positions']} positions, {found['vocab']} rows, predictor: {predictor}\n")
    print(f"{'rows':>10} {'per token':>10} {'most':>8} {'bytes':>7} {'top-1':>9} {'top-20':>8} {'KL':>9} {'worst':>9}")
    line("sparse", found["sparse"])
    for share in found["shares"]:
        line(f"{100 * share['share']:g} %", share)
    return 0


def percentages(text: str) -> List[float]:
    """Shares from percentages that commas separate."""
    try:
        return [float(part.strip().rstrip("%")) / 100 for part in text.split(",") if part.strip()]
    except ValueError:
        raise InvalidArgument(f"shares: found {text!r}, allowed: percentages such as 0.5,1,20") from None


def line(name: str, q: HeadQuality) -> None:
    """Prints a line of the table."""
    print(
        f"{name:>10} {q['rows']:>10.1f} {q['most_rows']:>8} {q['bytes']:>7.1%} {q['top1']:>9.3%} {q['recall20']:>8.2%} "
        f"{q['kl']:>9.2e} {q['worst_kl']:>9.2e}"
    )
