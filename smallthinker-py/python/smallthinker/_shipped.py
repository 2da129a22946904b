"""The model that comes with the package."""

from __future__ import annotations

import os
from pathlib import Path

from ._errors import NotFound


def shipped_model_path() -> str:
    """Path of the model that comes with the package."""
    path = Path(__file__).parent / "models" / "smallthinker-tiny.gguf"
    if not path.is_file():
        raise NotFound(f"{os.fspath(path)}: the shipped model is missing from this installation; pass a path")
    return os.fspath(path)
