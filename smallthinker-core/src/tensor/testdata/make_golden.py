"""Writes the golden vectors of ../tests.rs from the `gguf` Python package, an independent implementation.

    python make_golden.py

dequantize.bin: per weight type, in the order of TYPES, `blocks` blocks as stored, then their values as
little-endian f32. quantize.bin: SAMPLES values as f32, then their bytes in each type of WRITTEN.
"""

import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

HERE = pathlib.Path(__file__).parent
TYPES = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K]
WRITTEN = [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0]
SAMPLES = 256
# Byte positions of the half-precision scales in a block of each type: random bytes there could be NaN.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}  # fmt: skip
# Zero, the smallest subnormal, ordinary values of both signs, the largest finite value.
SCALES = np.array([0.0, 6e-8, 0.0123, -0.37, 65504.0, -1.0, -65504.0, 3e-5], np.float16)


def weights(rng: np.random.Generator, kind: T, blocks: int) -> np.ndarray:
    length, size = gguf.GGML_QUANT_SIZES[kind]
    if length == 1:
        values = rng.standard_normal(blocks).astype(np.float32) * np.float32(10.0) ** rng.integers(-6, 5, blocks)
        return gguf.quants.quantize(values.astype(np.float32), kind).view(np.uint8)
    raw = rng.integers(0, 256, (blocks, size), np.uint8)
    for at in HALVES[kind]:
        raw[:, at : at + 2] = np.resize(rng.permutation(SCALES), blocks).reshape(-1, 1).view(np.uint8)
    return raw.reshape(-1)


def main() -> None:
    rng = np.random.default_rng(20250728)
    out = b""
    for kind in TYPES:
        length = gguf.GGML_QUANT_SIZES[kind][0]
        raw = weights(rng, kind, {1: 32, 32: 6, 256: 2}[length])
        out += raw.tobytes() + gguf.quants.dequantize(raw, kind).astype("<f4").tobytes()
    (HERE / "dequantize.bin").write_bytes(out)

    x = rng.standard_normal(SAMPLES).astype(np.float32)
    x[32:64] *= np.float32(1e4)
    x[64:96] = 0
    x[96:128] = np.arange(-16, 16) / 2  # exact halves: the rounding rule shows
    x[128:160] = np.tile([3.0, -3.0], 16)  # two extremes of opposite sign: the first decides
    x[160:192] *= np.float32(1e-6)
    out = x.astype("<f4").tobytes()
    for kind in WRITTEN:
        out += gguf.quants.quantize(x, kind).view(np.uint8).tobytes()
    (HERE / "quantize.bin").write_bytes(out)


if __name__ == "__main__":
    main()
