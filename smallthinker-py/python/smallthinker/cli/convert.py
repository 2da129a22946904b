"""`smallthinker convert`: Hugging Face checkpoint to GGUF."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .._smallthinker import convert
from ._options import size
from ._progress import bar


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("convert", help="convert a Hugging Face checkpoint to GGUF")
    parser.add_argument("hf_dir", metavar="HF_DIR", help="folder with config.json, *.safetensors and tokenizer.json")
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument("--type", default="q4_0", help="f32, f16, bf16, q8_0 or q4_0 (default)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Converts and says what was written."""
    with bar("converting", "B") as progress:
        done = convert(args.hf_dir, args.out, args.type, progress)
    for name in done["fallbacks"]:
        print(f"{name}: kept in F16, its rows are not whole blocks of {args.type}", file=sys.stderr)
    print(f"{args.out}: {done['tensors']} tensors, {done['parameters']:,} weights, {size(done['data_bytes'])}")
    return 0
