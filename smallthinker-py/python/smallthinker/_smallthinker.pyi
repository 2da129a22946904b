"""Types of the native module."""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Literal, final

import numpy as np
import numpy.typing as npt

from ._types import (
    Benchmark,
    Conversion,
    GenerationStats,
    HeadComparison,
    Inspection,
    Measurement,
    Message,
    ModelStats,
    Packing,
    Perplexity,
    Plan,
    PolicyComparison,
    Profile,
    Quantization,
    RoutingProfile,
    Simulations,
    TraceSummary,
)

__all__ = [
    "Generation",
    "Model",
    "Session",
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
    "simulate",
    "trace",
]

__version__: str

@final
class TokenLogprobs:
    @property
    def token(self) -> int: ...
    @property
    def logprob(self) -> float: ...
    @property
    def top(self) -> list[tuple[int, float]]: ...

@final
class Generation:
    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def stats(self) -> GenerationStats: ...
    @property
    def logprobs(self) -> list[TokenLogprobs] | None: ...

@final
class Stream:
    def __iter__(self) -> Stream: ...
    def __next__(self) -> str: ...
    def __enter__(self) -> Stream: ...
    def __exit__(self, *exception: object) -> None: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def stats(self) -> GenerationStats: ...
    @property
    def logprobs(self) -> list[TokenLogprobs] | None: ...

@final
class Model:
    def __new__(
        cls,
        path: str | PathLike[str] | None = None,
        *,
        memory_budget: int | str | None = None,
        threads: int | None = None,
        lm_head: Literal["full", "sparse"] = "full",
        kernels: str | None = None,
        context_length: int | None = None,
        chunk: int | None = None,
        kv_type: Literal["f16", "f32", "q8_0", "q4_0"] = "f16",
        gating: Literal["softmax", "sigmoid"] | None = None,
        cache_policy: Literal["lru", "cyclic"] | None = None,
        look_ahead: bool | None = None,
        buffered_reads: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Model: ...
    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        logprobs: int | None = None,
        lm_head: Literal["full", "sparse"] | None = None,
    ) -> Generation: ...
    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        logprobs: int | None = None,
        lm_head: Literal["full", "sparse"] | None = None,
    ) -> Stream: ...
    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        logprobs: int | None = None,
        lm_head: Literal["full", "sparse"] | None = None,
    ) -> Generation: ...
    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        logprobs: int | None = None,
        lm_head: Literal["full", "sparse"] | None = None,
    ) -> Stream: ...
    def tokenize(self, text: str, *, specials: bool = False) -> list[int]: ...
    def detokenize(self, ids: Iterable[int]) -> str: ...
    def logits(self, ids: Iterable[int]) -> npt.NDArray[np.float32]: ...
    def session(self) -> Session: ...
    def load_session(self, path: str | PathLike[str]) -> Session: ...
    def set_memory_budget(self, memory_budget: int | str) -> None: ...
    def plan(self) -> Plan: ...
    def stats(self) -> ModelStats: ...
    def close(self) -> None: ...
    def __enter__(self) -> Model: ...
    def __exit__(self, *exception: object) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def context_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...

@final
class Session:
    def generate(
        self,
        prompt: str | None = None,
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        logprobs: int | None = None,
        lm_head: Literal["full", "sparse"] | None = None,
    ) -> Generation: ...
    def stream(
        self,
        prompt: str | None = None,
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        logprobs: int | None = None,
        lm_head: Literal["full", "sparse"] | None = None,
    ) -> Stream: ...
    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        logprobs: int | None = None,
        lm_head: Literal["full", "sparse"] | None = None,
    ) -> Generation: ...
    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: dict[int, float] | None = None,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        logprobs: int | None = None,
        lm_head: Literal["full", "sparse"] | None = None,
    ) -> Stream: ...
    def append(self, text: str) -> None: ...
    def append_tokens(self, ids: Iterable[int]) -> None: ...
    def evaluate(self) -> None: ...
    def rewind(self, position: int) -> None: ...
    def fork(self) -> Session: ...
    def save(self, path: str | PathLike[str]) -> None: ...
    def cancel(self) -> None: ...
    @property
    def tokens(self) -> list[int]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Session: ...
    def __exit__(self, *exception: object) -> None: ...

def bench(
    model: Model,
    *,
    prompt_tokens: int = 512,
    gen_tokens: int = 128,
    repetitions: int = 3,
    text: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Benchmark: ...
def profile(model: Model, *, prompt_tokens: int = 128, gen_tokens: int = 64) -> Profile: ...
def perplexity(
    model: Model,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Perplexity: ...
def heads(
    model: Model,
    text: str,
    *,
    shares: Sequence[float] | None = None,
    context: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> HeadComparison: ...
def inspect(path: str | PathLike[str]) -> Inspection: ...
def plan(
    path: str | PathLike[str],
    *,
    memory_budget: int | str | None = None,
    chunk: int | None = None,
    kv_type: Literal["f16", "f32", "q8_0", "q4_0"] = "f16",
    lm_head: Literal["full", "sparse"] = "full",
) -> Plan: ...
def convert(
    hf_dir: str | PathLike[str],
    out: str | PathLike[str],
    type: str = "q4_0",
    progress: Callable[[int, int], object] | None = None,
) -> Conversion: ...
def quantize(
    path: str | PathLike[str],
    out: str | PathLike[str],
    type: str = "q4_0",
    progress: Callable[[int, int], object] | None = None,
) -> Quantization: ...
def pack(
    path: str | PathLike[str],
    out: str | PathLike[str],
    progress: Callable[[int, int], object] | None = None,
) -> Packing: ...
def trace(
    model: Model,
    prompt: str,
    path: str | PathLike[str],
    *,
    max_tokens: int = 128,
    prompt_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
) -> TraceSummary: ...
def routing_profile(model: Model, text: str) -> RoutingProfile: ...
def policies(path: str | PathLike[str], *, budgets: Sequence[int | str] | None = None) -> PolicyComparison: ...
def simulate(
    path: str | PathLike[str],
    *,
    compute: Measurement,
    storage: Sequence[str],
    budgets: Sequence[int | str] | None = None,
    policy: Literal["lru", "cyclic"] | None = None,
    readers: int = 4,
    queue_depth: int = 32,
    pack_rate: int | str | None = None,
    look_ahead: float | None = None,
) -> Simulations: ...
