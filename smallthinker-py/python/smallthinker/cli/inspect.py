"""`smallthinker inspect`: what a GGUF file holds."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any, List

from .._smallthinker import inspect
from ._options import size

SHOWN = 60


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("inspect", help="show what a GGUF file holds")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints hyperparameters, metadata and tensors."""
    found = inspect(args.file)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['path']}: GGUF version {found['version']}, {size(found['file_bytes'])}")
    if found["hyperparameters"] is not None:
        print("\nHyperparameters")
        for name, value in found["hyperparameters"].items():
            if name != "attention":
                print(f"  {name:<16} {value}")
        print(f"  {'attention':<16} {attention(found['hyperparameters']['attention'])}")
    print("\nMetadata")
    for key, value in found["metadata"].items():
        print(f"  {key} = {short(value)}")
    print("\nTensors")
    for tensor in found["tensors"]:
        shape = " x ".join(map(str, tensor["shape"]))
        print(f"  {tensor['name']:<32} {tensor['type']:<5} {shape:<20} {size(tensor['bytes'])}")
    counts: Counter[str] = Counter()
    for tensor in found["tensors"]:
        counts[tensor["type"]] += tensor["bytes"]
    totals = ", ".join(f"{kind} {size(count)}" for kind, count in counts.most_common())
    print(f"\n{len(found['tensors'])} tensors: {totals}")
    return 0


def attention(layers: List[Any]) -> str:
    """One word per layer: G global, W window; lower case without RoPE."""
    letters = ["W" if layer["window"] else "G" for layer in layers]
    marks = [m if layer["rope_base"] else m.lower() for m, layer in zip(letters, layers)]
    return "".join(marks) + "  (G global, W window; lower case: no RoPE)"


def short(value: Any) -> str:
    """A metadata value on one line."""
    if isinstance(value, list):
        return f"{len(value)} values, {json.dumps(value[:4])[1:-1]}, ..." if len(value) > 4 else json.dumps(value)
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"
