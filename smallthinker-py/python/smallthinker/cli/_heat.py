"""Pictures of a routing profile, with matplotlib: the extra `plot` of the package."""

from __future__ import annotations

import os
import tempfile
from typing import Any, List

from .._errors import InvalidArgument
from .._types import RoutingProfile

RARE = 0.14  # the technical report calls experts cold that fewer tokens use


def write(found: RoutingProfile, title: str, prefix: str) -> List[str]:
    """Writes PREFIX-experts.png (how often each expert is used, by layer, and all frequencies in order) and
    PREFIX-sparsity.png; returns their paths."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise InvalidArgument(f"--plot needs matplotlib ({e}): pip install 'smallthinker[plot]'") from e
    layers = len(found["frequency"])
    figure = Figure(figsize=(9, 4 + layers / 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[layers / 6 + 1, 2])
    ordered = [sorted(layer, reverse=True) for layer in found["frequency"]]
    image = top.imshow(ordered, aspect="auto", vmin=0, vmax=max(map(max, ordered)), interpolation="nearest")
    top.set(title=title, ylabel="layer", xlabel="experts of the layer, the most used first")
    figure.colorbar(image, ax=top, label="share of tokens")
    values = sorted((x for layer in ordered for x in layer), reverse=True)
    bottom.plot([100 * (i + 0.5) / len(values) for i in range(len(values))], values)
    bottom.axhline(RARE, color="grey", linestyle=":")
    bottom.set(xlabel="experts of all layers, %", ylabel="share of tokens", ylim=(0, None))
    bars = Figure(figsize=(9, 3), layout="constrained")
    axes = bars.subplots()
    axes.bar(range(layers), [100 * x for x in found["sparsity"]])
    axes.set(title=title, xlabel="layer", ylabel="neurons at zero after ReLU, %", ylim=(0, 100))
    return [save(figure, f"{prefix}-experts.png"), save(bars, f"{prefix}-sparsity.png")]


def save(figure: Any, path: str) -> str:
    """Writes a picture that appears when it is complete."""
    handle, temporary = tempfile.mkstemp(suffix=".png", prefix=".", dir=os.path.dirname(path) or ".")
    os.close(handle)
    try:
        figure.savefig(temporary, dpi=120)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
