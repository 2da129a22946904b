"""The command line `smallthinker`: one file per command."""

from __future__ import annotations

import argparse
import os
import sys
from typing import List, Optional

from .._errors import SmallThinkerError
from .._smallthinker import __version__
from . import (
    bench,
    chat,
    convert,
    generate,
    heads,
    inspect,
    pack,
    perplexity,
    plan,
    policies,
    profile,
    quantize,
    simulate,
    trace,
)

COMMANDS = (
    generate,
    chat,
    inspect,
    convert,
    quantize,
    pack,
    plan,
    bench,
    profile,
    perplexity,
    heads,
    trace,
    policies,
    simulate,
)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="smallthinker", description="Run SmallThinker language models on the CPU.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C (usage errors exit with 2)."""
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left, as `head` does: no error. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SmallThinkerError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"smallthinker: error: {message}", file=sys.stderr)
        return 1
