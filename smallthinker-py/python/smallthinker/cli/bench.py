"""`smallthinker bench`: how fast a model runs here."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .._smallthinker import bench
from .._types import ExpertCacheStats, Measurement, StorageLimit
from ._options import add_model, load, read_text, size, streaming, streams
from ._progress import bar


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("bench", help="measure the speed of a model")
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="P", help="default: %(default)s")
    parser.add_argument("--gen-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=3, metavar="R", help="default: %(default)s")
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="a text, in UTF-8, to read and decode (default: random tokens)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    with load(args) as model, bar("measuring") as progress:
        found = bench(
            model,
            prompt_tokens=args.prompt_tokens,
            gen_tokens=args.gen_tokens,
            repetitions=args.repetitions,
            text=None if args.file is None else read_text(args.file),
            progress=progress,
        )
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"model      {found['model']}, {found['threads']} threads, {found['kernels']}")
    first = f"first token after {found['time_to_first_token_s'] * 1000:.0f} ms"
    print(f"load       {found['load_s']:.2f} s, {first}, peak memory {size(found['peak_rss_bytes'])}")
    for name, count in (("prefill", found["prompt_tokens"]), ("decode", found["gen_tokens"])):
        spread: Any = found["prefill_tok_s"] if name == "prefill" else found["decode_tok_s"]
        figures = f"{spread['median']:.1f} tokens/s ({spread['min']:.1f} to {spread['max']:.1f})"
        print(f"{name:<10} {figures}, {count} tokens, {found['repetitions']} repetitions")
    print(f"bandwidth  {size(found['bytes_per_token'])} per token, {bandwidth(found)}")
    print(f"experts    {experts(found['expert_cache'])}")
    if streams(found):
        print(f"reading    {streaming(found)}")
    if found["storage"] is not None and found["storage"]["limit_tok_s"] is not None:
        print(f"storage    {limit(found['storage'])}")
    return 0


def bandwidth(found: Measurement) -> str:
    """The rate of decode beside what this machine can read."""
    decode, best = found["decode_bandwidth_bytes_s"] / 1e9, found["read_bandwidth_bytes_s"] / 1e9
    share = f"{decode:.1f} GB/s, {found['read_bandwidth_share']:.0%} of this machine's {best:.1f} GB/s"
    return f"{share} (a plain loop: {found['read_bandwidth_plain_bytes_s'] / 1e9:.1f} GB/s)"


def limit(storage: StorageLimit) -> str:
    """The speed of decode beside what storage allows."""
    rate = f"experts can be read at {storage['bandwidth_bytes_s'] / 1e6:.0f} MB/s"
    return f"{rate}, enough for {storage['limit_tok_s']:.1f} tokens/s; reached {storage['limit_share']:.0%} of that"


def experts(cache: ExpertCacheStats) -> str:
    """What the expert cache did."""
    return f"{cache['resident']} of {cache['slots']} slots, {cache['hits']} hits, {cache['misses']} misses"
