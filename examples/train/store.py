"""Checkpoints: one .npz with everything a resumed run needs, weights alone, or weights in parts of limited size.

Names inside: `config` and `progress` (JSON), `param.*`, and in a full checkpoint the optimizer's `m.*`, `v.*`, `t`.
"""
import dataclasses
import json
import os

import numpy as np

import model


def write(path, cfg, arrays, progress):
    """Write an .npz; the file appears whole or not at all."""
    np.savez(path + ".tmp.npz", config=json.dumps(dataclasses.asdict(cfg)), progress=json.dumps(progress), **arrays)
    os.replace(path + ".tmp.npz", path)


def save(path, cfg, params, progress, state=None, dtype=np.float32):
    """Write the weights as `dtype`, and with `state` the optimizer's moments."""
    arrays = {f"param.{k}": np.asarray(v).astype(dtype) for k, v in params.items()}
    if state:
        arrays |= {f"{part}.{k}": np.asarray(v) for part in ("m", "v") for k, v in state[part].items()}
        arrays["t"] = np.asarray(state["t"])
    write(path, cfg, arrays, progress)


def save_parts(stem, cfg, params, progress, limit, dtype=np.float16):
    """Write `stem`.0.npz, `stem`.1.npz, ... of at most `limit` bytes each, whole layers together where they fit."""
    pieces = {}
    for name, value in params.items():
        value = np.asarray(value).astype(dtype)
        stacked = value.nbytes > limit // 4
        pieces |= {f"{name}.{i}": v for i, v in enumerate(value)} if stacked else {name: value}
    files, size = [{}], 0
    for name, value in sorted(pieces.items(), key=lambda p: p[1].nbytes):
        if size + value.nbytes > limit - 65536:  # room for headers
            files.append({})
            size = 0
        files[-1][f"param.{name}"] = value
        size += value.nbytes
    for i, arrays in enumerate(files):
        write(f"{stem}.{i}.npz", cfg, arrays, progress)


def load_params(*paths):
    """(Config, float32 weights as numpy arrays, progress) of a checkpoint, or of all its parts."""
    params = {}
    for path in paths:
        with np.load(path) as z:
            cfg, progress = model.Config(**json.loads(str(z["config"]))), json.loads(str(z["progress"]))
            params |= {k.removeprefix("param."): z[k].astype(np.float32) for k in z.files if k.startswith("param.")}
    for name in {k.split(".")[0] for k in params if "." in k}:
        params[name] = np.stack([params.pop(f"{name}.{i}") for i in range(cfg.layers)])
    return cfg, params, progress


def load(path):
    """(Config, weights, optimizer state, progress) of a full checkpoint."""
    cfg, params, progress = load_params(path)
    with np.load(path) as z:
        part = lambda p: {k.removeprefix(p): z[k] for k in z.files if k.startswith(p)}
        return cfg, params, {"m": part("m."), "v": part("v."), "t": z["t"]}, progress
