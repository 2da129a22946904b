"""`smallthinker profile`: where the time of a model goes, or how a text uses it."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from typing import Any, List

from .._errors import InvalidArgument
from .._smallthinker import profile, routing_profile
from .._types import ExpertKernel, Profile, RoutingProfile
from . import _heat
from ._options import add_model, load, read_text, streaming, streams
from .bench import bandwidth, experts

HEADER = (
    f"{'':<14} {'decode':>9} {'':>6} {'':>9} {'':>6} {'prefill':>10}\n"
    f"{'stage':<14} {'ms/token':>9} {'share':>6} {'MB/token':>9} {'GB/s':>6} {'ms/token':>10} {'share':>6}"
)


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("profile", help="show where the time of a model goes")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="P", help="default: %(default)s")
    parser.add_argument("--gen-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--routing", metavar="FILE", help="a text in UTF-8: which experts it uses how often, and how sparse their neurons are"
    )
    parser.add_argument(
        "--plot", metavar="PREFIX", help="with --routing: draw PREFIX-experts.png and PREFIX-sparsity.png (needs matplotlib)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_model(parser, positional=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    if args.routing is not None:
        return routing(args)
    if args.plot is not None:
        raise InvalidArgument("--plot draws what --routing found")
    with load(args) as model:
        found = profile(model, prompt_tokens=args.prompt_tokens, gen_tokens=args.gen_tokens)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    table(found)
    print()
    print(f"model      {found['model']}, {found['threads']} threads, {found['kernels']}")
    first = f"first token after {found['time_to_first_token_s'] * 1000:.0f} ms"
    print(f"load       {found['load_s']:.2f} s, {first}")
    for name, count, speed in (
        ("prefill", found["prompt_tokens"], found["prefill_tok_s"]),
        ("decode", found["gen_tokens"], found["decode_tok_s"]),
    ):
        print(f"{name:<10} {speed:.1f} tokens/s, {count} tokens")
    print(f"bandwidth  {bandwidth(found)}")
    print(f"experts    {experts(found['expert_cache'])}")
    if streams(found):
        print(f"reading    {streaming(found)}")
    for part in ("gate", "up", "down"):
        print(f"{part:<10} {kinds([k for k in found['expert_kernels'] if k['part'] == part])}")
    return 0


def routing(args: argparse.Namespace) -> int:
    """How a text uses the experts."""
    text = read_text(args.routing)
    with load(args) as model:
        found = routing_profile(model, text)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{found['tokens']} tokens, {found['experts_used']} of {len(found['frequency'][0])} experts each\n")
        routing_table(found)
    if args.plot is not None:
        title = f"{os.path.basename(args.model or 'shipped model')}, {os.path.basename(args.routing)}"
        for path in _heat.write(found, title, args.plot):
            print(path, file=sys.stderr if args.json else sys.stdout)
    return 0


def routing_table(found: RoutingProfile) -> None:
    """Prints a row per layer, and the median of each column."""
    print(f"{'layer':>6} {'busiest':>9} {'median':>9} {f'under {_heat.RARE:.0%}':>10} {'zeros':>7}")
    rows = []
    for layer, zeros in zip(found["frequency"], found["sparsity"]):
        rare = sum(x < _heat.RARE for x in layer) / len(layer)
        rows.append([max(layer), statistics.median(layer), rare, zeros])
    for name, row in [*enumerate(rows), ("median", [statistics.median(column) for column in zip(*rows)])]:
        busiest, median, rare, zeros = row
        print(f"{name:>6} {busiest:>9.1%} {median:>9.1%} {rare:>10.1%} {zeros:>7.1%}")


def table(found: Profile) -> None:
    """Prints the stages, what is none of them (sampling, text), and the total."""
    print(HEADER)
    decode, prefill = found["decode_ms_per_token"], found["prefill_ms_per_token"]
    stages = found["stages"]

    def row(name: str, decode_ms: float, count: int, prefill_ms: float) -> None:
        rate = count / decode_ms / 1e6 if decode_ms > 0 else 0.0
        print(
            f"{name:<14} {number(decode_ms, 3):>9} {share(decode_ms, decode):>6} {number(count / 1e6, 2):>9} "
            f"{number(rate, 1):>6} {number(prefill_ms, 3):>10} {share(prefill_ms, prefill):>6}"
        )

    for name, cost in stages.items():
        row(name, cost["decode_ms_per_token"], cost["decode_bytes_per_token"], cost["prefill_ms_per_token"])
    rest = decode - sum(cost["decode_ms_per_token"] for cost in stages.values())
    prefill_rest = prefill - sum(cost["prefill_ms_per_token"] for cost in stages.values())
    row("other", max(rest, 0.0), 0, max(prefill_rest, 0.0))
    row("total", decode, found["bytes_per_token"], prefill)


def number(value: float, digits: int) -> str:
    """A dash for what does not occur."""
    return f"{value:.{digits}f}" if value > 0 else "-"


def share(part: float, whole: float) -> str:
    """In percent."""
    return f"{part / whole:.1%}" if 0 < part and 0 < whole else "-"


def kinds(found: List[ExpertKernel]) -> str:
    """How a projection is read, where layers differ with their numbers."""
    return ", ".join(
        f"{kind['type']} {'sparse (inactive neurons skipped)' if kind['sparse'] else 'dense'}"
        + (f" in {kind['layers']} layers" if len(found) > 1 else "")
        for kind in found
    )
