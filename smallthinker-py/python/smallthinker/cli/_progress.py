"""Progress bars on stderr, when it is a terminal."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator, Optional

WIDTH = 30
REDRAW_S = 0.1


@contextmanager
def bar(label: str, unit: str = "") -> Iterator[Optional[Callable[[int, int], None]]]:
    """A callable (done, total) that draws a bar, or None where nobody would see it. The bar vanishes at the end."""
    if not sys.stderr.isatty():
        yield None
        return
    began = time.monotonic()
    drawn = began  # work shorter than one redraw shows nothing

    def report(done: int, total: int) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn < REDRAW_S or total <= 0:
            return
        drawn = now
        share = min(done / total, 1.0)
        left = (now - began) * (1 - share) / share if share > 0 else 0.0
        count = f"{done / 1e6:.0f}/{total / 1e6:.0f} MB" if unit == "B" else f"{done}/{total}"
        line = f"{label} |{'#' * int(share * WIDTH):<{WIDTH}}| {share:4.0%} {count} {left:.0f} s left"
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()

    try:
        yield report
    finally:
        if drawn != began:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
