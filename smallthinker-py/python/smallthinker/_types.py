"""Types of the dicts that this package takes and returns."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, TypedDict


class Message(TypedDict):
    """One turn of a conversation; role is "system", "user" or "assistant"."""

    role: str
    content: str


class LookAheadStats(TypedDict):
    """What became of the experts that were requested before they were chosen (those still on their way: nothing yet).

    on_time and late ones were chosen; wasted ones were read, withdrawn ones not; evicted ones went before their layer's turn.
    """

    requested: int
    on_time: int
    late: int
    wasted: int
    withdrawn: int
    evicted: int


class ExpertCacheStats(TypedDict):
    """What the expert cache did.

    stall_s is the time that computation waited for reads, or that its threads spent on them; reading_s the time during
    which anything was being read and brought into its place, and read_bytes_s the rate of that.
    """

    slots: int
    resident: int
    hits: int
    misses: int
    evictions: int
    bytes_read: int
    stall_s: float
    reading_s: float
    read_bytes_s: float
    hit_rate: float
    look_ahead: LookAheadStats


class StageCost(TypedDict):
    """What one token took in a stage of the forward pass; bytes are weights, keys and values that decode read."""

    decode_ms_per_token: float
    decode_bytes_per_token: int
    prefill_ms_per_token: float


class GenerationStats(TypedDict):
    """Figures of one generation. Decode is everything after the first token.

    expert_cache is what the cache did for all sessions meanwhile, decode_expert_cache what it did during decode.
    read_bytes_per_token is what decode read from the file, stall_share the share of its time that it waited for that or rearranged it.

    stages has those that took any time: embedding, router, norm, qkv, attention, attention_out, wait (for experts that
    are still being read, and rearranging those that have been), gate_up, down, head. gate and up have bytes of their own; their time is gate_up's.
    head_rows_per_token are the rows of the LM head that decode computed.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_tok_s: float
    decode_tok_s: float
    prefill_s: float
    decode_s: float
    time_to_first_token_s: float
    bytes_per_token: int
    bandwidth_bytes_s: float
    stages: Dict[str, StageCost]
    expert_cache: ExpertCacheStats
    decode_expert_cache: ExpertCacheStats
    read_bytes_per_token: int
    stall_share: float
    kernels: str
    threads: int
    lm_head: str
    head_rows_per_token: float
    seed: int


class ModelStats(TypedDict):
    """State of a model. Budgets are bytes.

    sparse_up and sparse_down tell whether decode skips inactive neurons in these projections of all layers; direct_reads
    whether experts are read past the system's page cache; look_ahead whether those are that the next layers may choose.
    head_predictor is what picks rows for the sparse head: "file", "sketch", or None.
    """

    load_s: float
    threads: int
    kernels: str
    budget: int
    budget_used: int
    expert_cache: ExpertCacheStats
    cache_policy: str
    lm_head: str
    head_predictor: Optional[str]
    direct_reads: bool
    look_ahead: bool
    sparse_up: bool
    sparse_down: bool


class Plan(TypedDict):
    """How a memory budget is divided. All bytes, except expert_slots and experts, which are counts. lm_head is what the
    sparse head holds besides the head."""

    budget: int
    floor: int
    per_token: int
    everything: int
    resident: int
    lm_head: int
    tokenizer: int
    scratch: int
    read_buffers: int
    kv_first_page: int
    kv_full_context: int
    expert_bank: int
    expert_slot: int
    expert_slots: int
    experts: int
    fits: bool


class LayerAttention(TypedDict):
    """Attention of one layer: window None sees everything, rope_base None has no positions."""

    window: Optional[int]
    rope_base: Optional[float]


class Hyperparameters(TypedDict):
    """The shape of a model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    expert_ffn: int
    experts: int
    experts_used: int
    vocab: int
    context_length: int
    rms_eps: float
    gating: str
    attention: List[LayerAttention]


class Tensor(TypedDict):
    """One tensor of a file. shape[0] is the length of a row and varies fastest."""

    name: str
    type: str
    shape: List[int]
    bytes: int


class Inspection(TypedDict):
    """What a file holds."""

    path: str
    version: int
    file_bytes: int
    hyperparameters: Optional[Hyperparameters]
    metadata: Dict[str, Any]
    tensors: List[Tensor]


class Conversion(TypedDict):
    """What a conversion did."""

    tensors: int
    parameters: int
    data_bytes: int
    fallbacks: List[str]
    skipped: List[str]


class Quantization(TypedDict):
    """What a quantization did. Bytes are those of tensor data, read and written; fallbacks are tensors kept in F16."""

    tensors: int
    quantized: int
    source_bytes: int
    data_bytes: int
    fallbacks: List[str]


class Packing(TypedDict):
    """What was packed."""

    tensors: int
    experts: int
    data_bytes: int


class Spread(TypedDict):
    """A figure over repetitions."""

    min: float
    median: float
    max: float


class StorageLimit(TypedDict):
    """What storage allows decoding: the rate at which experts can be read while nothing else is done, the tokens per second
    at which storage alone would be busy all the time (None if decode read nothing), and the share of that limit reached."""

    bandwidth_bytes_s: float
    limit_tok_s: Optional[float]
    limit_share: float


class Measurement(TypedDict):
    """What both a benchmark and a profile measured.

    Times per token and stages are those of one run. read_bandwidth_bytes_s is the best rate at which this machine reads
    memory, read_bandwidth_plain_bytes_s that of a plain loop. read_bytes_per_token is what decode read from the file. storage is None
    if all experts are in memory.
    """

    model: str
    prompt_tokens: int
    gen_tokens: int
    threads: int
    kernels: str
    load_s: float
    time_to_first_token_s: float
    prefill_ms_per_token: float
    decode_ms_per_token: float
    stages: Dict[str, StageCost]
    bytes_per_token: int
    decode_bandwidth_bytes_s: float
    read_bandwidth_bytes_s: float
    read_bandwidth_plain_bytes_s: float
    read_bandwidth_share: float
    expert_cache: ExpertCacheStats
    decode_expert_cache: ExpertCacheStats
    read_bytes_per_token: int
    stall_share: float
    storage: Optional[StorageLimit]


class Benchmark(Measurement):
    """What a benchmark measured; times per token are those of the repetition with the median decode speed."""

    repetitions: int
    prefill_tok_s: Spread
    decode_tok_s: Spread
    peak_rss_bytes: Optional[int]


class ExpertKernel(TypedDict):
    """How decode reads one projection of the experts ("gate", "up" or "down") in so many layers."""

    part: str
    type: str
    layers: int
    sparse: bool


class Profile(Measurement):
    """Where the time went. In decode, gate and up are timed one by one; in prefill they are gate_up."""

    prefill_tok_s: float
    decode_tok_s: float
    expert_kernels: List[ExpertKernel]


class Perplexity(TypedDict):
    """How well a model predicted a text. tokens and bytes are those that were scored; nats is the sum of their negative
    log probabilities. bos tells whether windows began with BOS."""

    perplexity: float
    bits_per_byte: float
    bits_per_token: float
    nats: float
    tokens: int
    bytes: int
    windows: int
    context: int
    stride: int
    bos: bool


class HeadQuality(TypedDict):
    """The sparse LM head beside the full one. rows are per position; bytes are those of the rows and of the predictor, over the
    head's; top1 and recall20 are shares of the likeliest token and of the 20 likeliest; kl is in nats."""

    rows: float
    most_rows: int
    bytes: float
    top1: float
    recall20: float
    kl: float
    worst_kl: float


class ShareQuality(HeadQuality):
    """That of a fixed share of the rows."""

    share: float


class HeadComparison(TypedDict):
    """The sparse LM head as generations use it, and fixed shares of the rows. predictor is "file" or "sketch"."""

    predictor: str
    positions: int
    vocab: int
    head_bytes: int
    predictor_bytes: int
    sparse: HeadQuality
    shares: List[ShareQuality]


class TraceSummary(TypedDict):
    """What a routing trace holds. experts are those of all layers; expert_slot is the bytes of a cache slot.

    expert_bytes_per_token is what a token reads without a cache.
    """

    model: str
    layers: int
    experts: int
    experts_used: int
    prompt_tokens: int
    decode_tokens: int
    expert_slot: int
    expert_bytes_per_token: int


class RoutingProfile(TypedDict):
    """How a text uses a model.

    frequency[layer][expert] is the share of the text's tokens that used the expert; those of a layer add up to experts_used.
    sparsity[layer] is the share of the neurons of the experts used that ReLU set to zero.
    """

    tokens: int
    experts_used: int
    frequency: List[List[float]]
    sparsity: List[float]


class Replay(TypedDict):
    """What a cache of one size would have done under one policy; figures without "prompt" are those of decode."""

    policy: str
    expert_slots: int
    cache_bytes: int
    hit_rate: float
    bytes_per_token: int
    hits: int
    misses: int
    prompt_hits: int
    prompt_misses: int


class PolicyComparison(TraceSummary):
    """Every policy at every cache size, from the smallest on."""

    replays: List[Replay]


class Simulation(TypedDict):
    """What decoding would be like with a cache of one size and one storage device."""

    storage: str
    expert_slots: int
    cache_bytes: int
    decode_tok_s: float
    hit_rate: float
    stall_share: float
    read_bytes_per_token: int
    look_ahead: LookAheadStats


class Simulations(TraceSummary):
    """Every device at every cache size, from the smallest on; compute_tok_s is the speed without any reading."""

    policy: str
    threads: int
    compute_tok_s: float
    simulations: List[Simulation]
