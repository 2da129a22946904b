"""`smallthinker simulate`: how fast a machine with other storage would decode a recorded trace."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, List

from .._errors import InvalidArgument
from .._smallthinker import simulate
from .._types import Measurement, Simulations
from ._options import size


def add(commands: Any) -> None:
    """Adds the command."""
    text = "compute how fast a recorded trace would be decoded with other storage"
    parser = commands.add_parser("simulate", help=text)
    parser.add_argument("trace", metavar="TRACE", help="a file that `smallthinker trace` wrote")
    parser.add_argument(
        "--compute",
        required=True,
        metavar="FILE",
        help="output of `smallthinker profile --json` or `bench --json` of the same model, all of it in memory",
    )
    parser.add_argument(
        "--storage",
        required=True,
        type=listed,
        metavar="LIST",
        help="devices by rate and latency (default: 100us), such as 1.5GB/s@120us,500MB/s",
    )
    parser.add_argument(
        "--budgets",
        type=listed,
        metavar="LIST",
        help="memory for expert slots, such as 1GiB,2GiB or 10%%,25%% of all experts (default: 5%% to 100%%)",
    )
    parser.add_argument("--cache-policy", metavar="NAME", help="what to evict: lru or cyclic (default)")
    parser.add_argument("--readers", type=int, default=4, metavar="N", help="threads that read (default: %(default)s)")
    parser.add_argument(
        "--queue-depth", type=int, default=32, metavar="N", help="reads a device works on at once (default: %(default)s)"
    )
    parser.add_argument(
        "--pack-rate",
        metavar="BYTES",
        help="what the compute threads together rearrange per second of what was read (default: 5GB)",
    )
    parser.add_argument(
        "--look-ahead",
        type=float,
        metavar="SHARE",
        help="share of guesses, three for four of a layer's choices, that are right, 0 to 1 (default: no looking ahead)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def listed(text: str) -> List[str]:
    """The items of a list with commas."""
    return text.split(",")


def run(args: argparse.Namespace) -> int:
    """Simulates and prints."""
    found = simulate(
        args.trace,
        compute=measurement(Path(args.compute)),
        storage=args.storage,
        budgets=args.budgets,
        policy=args.cache_policy,
        readers=args.readers,
        queue_depth=args.queue_depth,
        pack_rate=args.pack_rate,
        look_ahead=args.look_ahead,
    )
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['model']}: {found['decode_tokens']} tokens, {found['compute_tok_s']:.1f}/s without reading")
    table(found)
    return 0


def measurement(path: Path) -> Measurement:
    """What `profile` or `bench` has printed."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidArgument(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path}: found {type(found).__name__}, expected what `profile --json` prints")
    measured: Measurement = found  # type: ignore[assignment]
    return measured


def table(found: Simulations) -> None:
    """Prints a line for each cache size and device."""
    print(f"\n{'cache':>10} {'experts':>8} {'share':>7}  {'storage':<16} {'tokens/s':>8} {'hits':>7} {'waited':>7} {'MB/token':>9}")
    for one in found["simulations"]:
        slots = one["expert_slots"]
        print(
            f"{size(one['cache_bytes']):>10} {slots:>8} {slots / found['experts']:>7.1%}  {one['storage']:<16} "
            f"{one['decode_tok_s']:>8.1f} {one['hit_rate']:>7.1%} {one['stall_share']:>7.1%} "
            f"{one['read_bytes_per_token'] / 1e6:>9.1f}"
        )
