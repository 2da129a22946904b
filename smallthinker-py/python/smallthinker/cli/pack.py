"""`smallthinker pack`: a copy of a model whose experts take one read each."""

from __future__ import annotations

import argparse
from typing import Any

from .._smallthinker import pack
from ._options import size
from ._progress import bar


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("pack", help="copy a model to a file that streams faster under a memory budget")
    parser.add_argument("file", metavar="IN.gguf")
    parser.add_argument("out", metavar="OUT.gguf")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Packs and says what was written."""
    with bar("packing", "B") as progress:
        done = pack(args.file, args.out, progress)
    print(f"{args.out}: {done['tensors']} tensors, {done['experts']:,} experts, {size(done['data_bytes'])}")
    return 0
