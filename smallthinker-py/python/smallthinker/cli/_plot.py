"""Line plots as SVG text."""

from __future__ import annotations

import math
from typing import List, NamedTuple, Sequence, Tuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 420, 300  # of a panel's axes
LEFT, TOP, RIGHT, BOTTOM = 64, 60, 24, 52  # around them
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")


class Line(NamedTuple):
    """Points (x, y) in ascending order of x."""

    name: str
    points: Sequence[Tuple[float, float]]
    dashed: bool = False


class Panel(NamedTuple):
    """Lines over one pair of axes, which start at 0."""

    title: str
    x_label: str
    lines: Sequence[Line]


def svg(title: str, panels: Sequence[Panel]) -> str:
    """A picture of panels side by side."""
    width = len(panels) * (LEFT + WIDTH + RIGHT)
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(width / 2, 22, title, 'text-anchor="middle" font-size="15"'),
    ]
    for i, panel in enumerate(panels):
        parts += draw(panel, i * (LEFT + WIDTH + RIGHT) + LEFT)
    return "\n".join([*parts, "</svg>", ""])


def draw(panel: Panel, left: float) -> List[str]:
    """One panel, its axes' left end at `left`."""
    points = [point for line in panel.lines for point in line.points]
    x_ticks = ticks(max((x for x, _ in points), default=0.0))
    y_ticks = ticks(max((y for _, y in points), default=0.0))
    bottom = TOP + HEIGHT

    def place(x: float, y: float) -> Tuple[float, float]:
        return left + WIDTH * x / x_ticks[-1], bottom - HEIGHT * y / y_ticks[-1]

    parts = [text(left + WIDTH / 2, TOP - 12, panel.title, 'text-anchor="middle" font-size="13"')]
    for tick in x_ticks:
        x, _ = place(tick, 0)
        parts.append(stroke([(x, TOP), (x, bottom)], 'stroke="#ddd"'))
        parts.append(text(x, bottom + 18, f"{tick:g}", 'text-anchor="middle"'))
    for tick in y_ticks:
        _, y = place(0, tick)
        parts.append(stroke([(left, y), (left + WIDTH, y)], 'stroke="#ddd"'))
        parts.append(text(left - 8, y + 4, f"{tick:g}", 'text-anchor="end"'))
    parts.append(text(left + WIDTH / 2, bottom + 40, panel.x_label, 'text-anchor="middle"'))
    for i, line in enumerate(panel.lines):
        dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
        style = f'stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2"{dashes}'
        parts.append(stroke([place(x, y) for x, y in line.points], style))
        y = TOP + 18 + 16 * i
        parts.append(stroke([(left + WIDTH - 90, y - 4), (left + WIDTH - 64, y - 4)], style))
        parts.append(text(left + WIDTH - 58, y, line.name, ""))
    return parts


def ticks(most: float) -> List[float]:
    """Round numbers from 0 to `most` or a little above."""
    if not most > 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(most / 5))
    step = next(power * n for n in (1, 2, 5, 10) if most / (power * n) <= 6)
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]


def stroke(points: Sequence[Tuple[float, float]], style: str) -> str:
    """A line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" {style}/>'


def text(x: float, y: float, content: str, style: str) -> str:
    """Words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(content)}</text>'
