"""`smallthinker policies`: what the expert cache would have done, by size and policy."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List

from .._smallthinker import policies
from .._types import PolicyComparison, Replay
from ._options import size
from ._plot import Line, Panel, svg


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("policies", help="compare policies of the expert cache on a recorded trace")
    parser.add_argument("trace", metavar="TRACE", help="a file that `smallthinker trace` wrote")
    parser.add_argument(
        "--budgets",
        type=lambda text: text.split(","),
        metavar="LIST",
        help="memory for expert slots, such as 1GiB,2GiB or 10%%,25%% of all experts (default: 5%% to 90%%)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw hit rate and bytes per token against the budget")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replays, prints and draws."""
    found = policies(args.trace, budgets=args.budgets)
    if args.plot is not None:
        write(Path(args.plot), plot(found))
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    tokens = f"{found['prompt_tokens']} tokens of prompt, {found['decode_tokens']} decoded"
    print(f"{found['model']}: {found['experts']} experts, {found['layers']} layers, {tokens}")
    print(f"{found['experts_used']} experts per layer and token: {size(found['expert_bytes_per_token'])} without a cache\n")
    table(found)
    return 0


def write(path: Path, content: str) -> None:
    """Writes a file that appears when it is complete."""
    begun = path.with_name(path.name + ".part")
    try:
        begun.write_text(content, encoding="utf-8")
        begun.replace(path)
    except OSError:
        begun.unlink(missing_ok=True)
        raise


def by_policy(found: PolicyComparison) -> Dict[str, List[Replay]]:
    """The replays of each policy, from the smallest cache on."""
    names = dict.fromkeys(replay["policy"] for replay in found["replays"])
    return {name: [r for r in found["replays"] if r["policy"] == name] for name in names}


def table(found: PolicyComparison) -> None:
    """Prints a line for each cache size: hit rates, then bytes read per token."""
    columns = by_policy(found)
    heads = "".join(f"{name:>9}" for name in columns)
    print(f"{'':>10} {'':>8} {'':>7}   {'hits':<{len(heads)}}   MB read per token")
    print(f"{'cache':>10} {'experts':>8} {'share':>7}   {heads}   {heads}")
    for row in zip(*columns.values()):
        slots = row[0]["expert_slots"]
        place = f"{size(row[0]['cache_bytes']):>10} {slots:>8} {slots / found['experts']:>7.1%}"
        hits = "".join(f"{replay['hit_rate']:>9.1%}" for replay in row)
        count = "".join(f"{replay['bytes_per_token'] / 1e6:>9.1f}" for replay in row)
        print(f"{place}   {hits}   {count}")


def plot(found: PolicyComparison) -> str:
    """Hit rate and bytes per token against the size of the cache."""
    lines = by_policy(found)

    def panel(title: str, value: Any) -> Panel:
        drawn = [
            Line(name, [(r["cache_bytes"] / 2**30, value(r)) for r in replays], dashed=name == "belady")
            for name, replays in lines.items()
        ]
        return Panel(title, "GiB of expert slots", drawn)

    tokens = f"{found['prompt_tokens']} tokens of prompt, {found['decode_tokens']} decoded"
    return svg(
        f"{found['model']}, {tokens}",
        [
            panel("hits in percent", lambda r: 100 * r["hit_rate"]),
            panel("MB read per token", lambda r: r["bytes_per_token"] / 1e6),
        ],
    )
