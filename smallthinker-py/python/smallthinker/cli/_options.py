"""Options that several commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Union

from .._errors import InvalidArgument
from .._smallthinker import Model
from .._types import GenerationStats, Measurement
from ._progress import bar


def add_model(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """Options of loading a model."""
    text = "a GGUF file (default: the model that comes with the package)"
    if positional:
        parser.add_argument("model", metavar="MODEL", nargs="?", help=text)
    group = parser.add_argument_group("model")
    if not positional:
        group.add_argument("--model", metavar="FILE", help=text)
    group.add_argument("--threads", type=int, metavar="N", help="compute threads (default: physical cores)")
    group.add_argument("--memory-budget", metavar="BYTES", help="memory to use at most, such as 8GiB")
    group.add_argument("--context-length", type=int, metavar="N", help="positions at most (default: the model's)")
    group.add_argument("--kernels", metavar="NAME", help="kernel set (default: the best for this CPU)")
    group.add_argument(
        "--kv-type", choices=("f16", "f32", "q8_0", "q4_0"), help="elements of the KV cache (default: f16)"
    )
    group.add_argument("--lm-head", choices=("full", "sparse"), help="compute all logits (default), or only likely ones")
    group.add_argument(
        "--cache-policy", metavar="NAME", help="what to evict if not all experts fit: lru or cyclic (default)"
    )
    group.add_argument(
        "--look-ahead",
        action=argparse.BooleanOptionalAction,
        help="read experts that the next layers may choose, if not all experts fit (default: yes)",
    )
    group.add_argument(
        "--buffered-reads",
        action="store_true",
        help="read experts through the system's page cache even if not all fit",
    )


def load(args: argparse.Namespace) -> Model:
    """The model that the options name."""
    with bar("loading", "B") as progress:
        return Model(
            args.model,
            threads=args.threads,
            memory_budget=args.memory_budget,
            context_length=args.context_length,
            kernels=args.kernels,
            cache_policy=args.cache_policy,
            **({"lm_head": args.lm_head} if args.lm_head else {}),
            look_ahead=args.look_ahead,
            buffered_reads=args.buffered_reads,
            **({"kv_type": args.kv_type} if args.kv_type else {}),
            progress=progress,
        )


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Options of generating text."""
    group = parser.add_argument_group("generation")
    group.add_argument(
        "-n", "--max-tokens", type=int, default=max_tokens, metavar="N", help="tokens at most (default: %(default)s)"
    )
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 always takes the likeliest token (default)"
    )
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="keep the K likeliest tokens (0: all)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="keep the likeliest tokens up to sum P")
    group.add_argument("--min-p", type=float, default=0.0, metavar="P", help="keep tokens P times as likely as the best")
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1 repeats less")
    group.add_argument("--seed", type=int, metavar="S", help="same seed, same text")
    group.add_argument("--stop", action="append", metavar="TEXT", help="stop before this text (can be repeated)")
    group.add_argument("-v", "--stats", action="store_true", help="print the speed on stderr")


def sampling(args: argparse.Namespace) -> Dict[str, Any]:
    """The keyword arguments of generate() and its kin."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
    return {name: getattr(args, name) for name in names}


def read_text(path: str) -> str:
    """A file's text, which must be UTF-8; "-" is stdin."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: byte {error.start} is not UTF-8") from None


def write(text: str) -> None:
    """Prints at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def speed_lines(stats: GenerationStats) -> str:
    """Figures of a generation in one line; if experts were read, in a second one what that took."""
    evaluated = stats["prompt_tokens"] - stats["cached_tokens"]
    rows = f"{stats['head_rows_per_token']:.0f} rows of the head, " if stats["lm_head"] == "sparse" else ""
    line = (
        f"prompt {evaluated} tokens at {stats['prefill_tok_s']:.1f}/s, "
        f"generated {stats['generated_tokens']} at {stats['decode_tok_s']:.1f}/s, "
        f"first after {stats['time_to_first_token_s'] * 1000:.0f} ms, "
        f"{stats['bandwidth_bytes_s'] / 1e9:.1f} GB/s of weights, {rows}{stats['threads']} threads, {stats['kernels']}, "
        f"seed {stats['seed']}"
    )
    return f"{line}\nexperts: {streaming(stats)}" if streams(stats) else line


def streams(found: Union[GenerationStats, Measurement]) -> bool:
    """Whether experts were read from the file while text was generated."""
    return found["expert_cache"]["bytes_read"] > 0


def streaming(found: Union[GenerationStats, Measurement]) -> str:
    """What decode read and how long it waited for that."""
    cache = found["decode_expert_cache"]
    ahead = cache["look_ahead"]
    return (
        f"{cache['hit_rate']:.1%} hits, {found['read_bytes_per_token'] / 1e6:.1f} MB read per token "
        f"at {cache['read_bytes_s'] / 1e6:.0f} MB/s, waited {found['stall_share']:.0%} of the time; looking ahead: "
        f"{ahead['on_time']} on time, {ahead['late']} late, {ahead['wasted']} wasted"
    )


def size(count: Optional[float]) -> str:
    """Bytes for people."""
    if count is None:
        return "unknown"
    if count >= 1 << 62:
        return "no limit"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"


