"""Adapter folders: adapter_config.json + adapter_model.safetensors, as PEFT saves them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sqft_plugins.checkpoint.json_object import read_object
from sqft_plugins.checkpoint.stamp import read_stamp
from sqft_plugins.errors import CheckpointError
from sqft_plugins.inspect.report import Row, count

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINING = "training.json"


def inspect_adapter(path: str | Path) -> dict[str, Any]:
    """path, kind "adapter", type, base, bytes, alpha, stamp (where it carries one), mask_hash and scale_hash (of the
    base it fits), rank_choices, sparse, quantization_aware, training (what `sqft train` told: tuner, settings, tokens,
    seconds, first and last loss; else None), total (modules, parameters, not_finite, ranks: rank → how many modules)
    and layers: name, rank, in, out, dtype, parameters, not_finite. Raises CheckpointError."""
    folder = Path(path)
    config = read_object(folder / ADAPTER_CONFIG, "copy the folder again")
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"adapter {path} has no {ADAPTER_WEIGHTS}: save it with save_pretrained")
    stamp = read_stamp(folder)
    layers = [_layer(name, A, B) for name, A, B in _lora_pairs(file)]
    return {
        "path": str(path),
        "kind": "adapter",
        "type": config.get("peft_type"),
        "base": config.get("base_model_name_or_path"),
        "alpha": config.get("lora_alpha"),
        "bytes": file.stat().st_size,
        "stamp": stamp.model_dump(exclude_none=True) if stamp else config.get("sqft"),
        "mask_hash": config.get("mask_hash"),
        "scale_hash": config.get("scale_hash"),
        "rank_choices": config.get("rank_choices"),
        "sparse": config.get("sparse"),
        "quantization_aware": config.get("quantization_aware"),
        "training": _training(folder / TRAINING),
        "total": {
            "modules": len(layers),
            "parameters": sum(row["parameters"] for row in layers),
            "not_finite": sum(row["not_finite"] for row in layers),
            "ranks": count(str(row["rank"]) for row in layers),
        },
        "layers": layers,
    }


def _training(file: Path) -> Row | None:
    if not file.is_file():
        return None
    report = read_object(file, "copy the folder again")
    losses = report.get("losses") or [None]
    kept = {key: report.get(key) for key in ("tuner", "training", "dtype", "tokens", "seconds")}
    return {**kept, "first_loss": losses[0], "last_loss": losses[-1]}


def _lora_pairs(file: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    try:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (not a mapping)
                other = name.replace(".lora_A.", ".lora_B.")
                if other != name:
                    module = name.partition(".lora_A.")[0].removeprefix("base_model.model.")
                    yield module, handle.get_tensor(name), handle.get_tensor(other)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or cut off ({error}): copy the adapter again") from error


def _layer(name: str, A: Tensor, B: Tensor) -> Row:
    return {
        "name": name,
        "rank": A.shape[0],
        "in": A.shape[1],
        "out": B.shape[0],
        "dtype": str(A.dtype).removeprefix("torch."),
        "parameters": A.numel() + B.numel(),
        "not_finite": sum(int(torch.count_nonzero(~torch.isfinite(part))) for part in (A, B)),
    }
