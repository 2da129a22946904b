"""`smallthinker quantize`: the weights of a GGUF file in a smaller type."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .._smallthinker import quantize
from ._options import size
from ._progress import bar


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("quantize", help="bring the weights of a GGUF file into a smaller type")
    parser.add_argument("file", metavar="IN.gguf", help="a model in F32, F16 or BF16 (any shard of a sharded one)")
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument("--type", default="q4_0", help="q8_0 or q4_0 (default)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantizes and says what was written."""
    with bar("quantizing", "B") as progress:
        done = quantize(args.file, args.out, args.type, progress)
    for name in done["fallbacks"]:
        print(f"{name}: kept in F16, its rows are not whole blocks of {args.type}", file=sys.stderr)
    sizes = f"{size(done['source_bytes'])} are {size(done['data_bytes'])} now"
    print(f"{args.out}: {done['quantized']} of {done['tensors']} tensors quantized, {sizes}")
    return 0
