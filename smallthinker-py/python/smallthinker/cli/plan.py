"""`smallthinker plan`: what a model takes under a memory budget."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .._smallthinker import plan
from ._options import size

LINES = (
    ("budget", "the budget"),
    ("floor", "least budget that can run it"),
    ("everything", "budget that holds everything"),
    ("per_token", "weights that one token touches"),
    ("resident", "dense weights, always in memory"),
    ("lm_head", "what the sparse LM head takes besides"),
    ("tokenizer", "tokenizer"),
    ("scratch", "buffers of one session"),
    ("read_buffers", "memory that experts are rearranged in"),
    ("kv_full_context", "KV cache of one session, full context"),
    ("expert_bank", "all experts"),
)


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("plan", help="show what a model takes, without loading it")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--memory-budget", metavar="BYTES", help="such as 8GiB (default: what the machine has free)")
    parser.add_argument("--lm-head", choices=("full", "sparse"), default="full", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="as JSON, in bytes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    found = plan(args.file, memory_budget=args.memory_budget, lm_head=args.lm_head)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    values: Any = found
    for key, label in LINES:
        print(f"{label:<40} {size(values[key]):>12}")
    kept = f"{found['expert_slots']} of {found['experts']}"
    print(f"{'experts kept in memory':<40} {kept:>12}")
    return 0
