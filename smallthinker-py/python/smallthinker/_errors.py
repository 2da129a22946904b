"""Exceptions: one base class, and a builtin parent where one fits."""

from __future__ import annotations


class SmallThinkerError(Exception):
    """Base of every error of this package, and the error itself when an object is misused."""


class NotFound(SmallThinkerError, FileNotFoundError):
    """A file does not exist."""

    def __str__(self) -> str:
        # OSError would write "[Errno 2] ..." instead of our message, which says more.
        return str(self.args[0]) if self.args else ""


class IoError(SmallThinkerError, OSError):
    """The operating system refused to read or write."""

    def __str__(self) -> str:
        # OSError would write "[Errno 2] ..." instead of our message, which says more.
        return str(self.args[0]) if self.args else ""


class ModelFormatError(SmallThinkerError, ValueError):
    """A file is damaged, or of a kind that this version does not support."""


class InvalidArgument(SmallThinkerError, ValueError):
    """An argument is outside its range."""


class ContextOverflow(SmallThinkerError, ValueError):
    """The conversation does not fit the model's context."""


class BudgetError(SmallThinkerError, MemoryError):
    """The memory budget is too small."""


class Cancelled(SmallThinkerError):
    """The work was cancelled from another thread."""


class InternalError(SmallThinkerError):
    """The library broke its own promise: please report it."""
