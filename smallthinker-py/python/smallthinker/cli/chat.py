"""`smallthinker chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any, List

from .._types import Message
from ._options import add_model, add_sampling, load, sampling, speed_lines, write


def add(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("chat", help="talk to the model", description="Talk to the model. Ctrl-D ends.")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    add_sampling(parser, max_tokens=1024)
    add_model(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads turns from stdin until its end. Ctrl-C stops an answer; at the prompt it ends the program."""
    history: List[Message] = []
    if args.system is not None:
        history.append({"role": "system", "content": args.system})
    interactive = sys.stdin.isatty()
    if interactive:
        # Line editing and recall of earlier lines, where Python was built with it.
        try:
            import readline  # noqa: F401
        except ImportError:
            pass
    with load(args) as model, model.session() as session:
        while True:
            try:
                line = input("> " if interactive else "")
            except EOFError:
                if interactive:
                    write("\n")
                return 0
            if not line.strip():
                continue
            history.append({"role": "user", "content": line})
            answer: List[str] = []
            with session.stream_chat(history, **sampling(args)) as stream:
                try:
                    for piece in stream:
                        answer.append(piece)
                        write(piece)
                except KeyboardInterrupt:
                    if not interactive:
                        raise
                write("\n")
                if args.stats:
                    print(speed_lines(stream.stats), file=sys.stderr)
            history.append({"role": "assistant", "content": "".join(answer)})
