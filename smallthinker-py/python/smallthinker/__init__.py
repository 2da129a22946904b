"""Runs SmallThinker language models from GGUF files, on the CPU, under a memory budget.

>>> import smallthinker
>>> model = smallthinker.Model()  # the model that comes with the package
>>> print(model.generate("Once upon a time", max_tokens=40).text)  # doctest: +SKIP
"""

from ._errors import (
    BudgetError,
    Cancelled,
    ContextOverflow,
    InternalError,
    InvalidArgument,
    IoError,
    ModelFormatError,
    NotFound,
    SmallThinkerError,
)
from ._shipped import shipped_model_path
from ._smallthinker import (
    Generation,
    Model,
    Session,
    Stream,
    TokenLogprobs,
    __version__,
    bench,
    convert,
    heads,
    inspect,
    pack,
    perplexity,
    plan,
    policies,
    profile,
    quantize,
    routing_profile,
    simulate,
    trace,
)
from ._types import Message

__all__ = [
    "BudgetError",
    "Cancelled",
    "ContextOverflow",
    "Generation",
    "InternalError",
    "InvalidArgument",
    "IoError",
    "Message",
    "Model",
    "ModelFormatError",
    "NotFound",
    "Session",
    "SmallThinkerError",
    "Stream",
    "TokenLogprobs",
    "__version__",
    "bench",
    "convert",
    "heads",
    "inspect",
    "pack",
    "perplexity",
    "plan",
    "policies",
    "profile",
    "quantize",
    "routing_profile",
    "shipped_model_path",
    "simulate",
    "trace",
]
