"""What an adapter folder holds: type, ranks, base, training, and each adapted layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.checkpoint.json_object import read_object
from sqft_plugins.checkpoint.stamp import read_stamp
from sqft_plugins.errors import CheckpointError
from sqft_plugins.inspect.report import Row, count

TRAINING = "training.json"


def inspect_adapter(path: str | Path) -> dict[str, Any]:
    """The report of an adapter folder, as JSON:

        path, kind ("adapter"), type, base, alpha, bytes
        stamp                    where it carries one
        mask_hash, scale_hash    of the base that it fits
        rank_choices, sparse, quantization_aware
        training                 of `sqft train`, else None: tuner, settings, tokens, seconds, first and last loss
        total                    modules, parameters, not_finite, ranks (rank → how many modules)
        layers                   name, rank, in, out, dtype, parameters, not_finite of each

    Raises CheckpointError for a damaged folder.
    """
    folder = AdapterFolder(path)
    config, stamp = folder.config, read_stamp(folder.path)
    layers = [_layer(pair.module, A, B) for pair, A, B in folder.read_pairs() if not pair.is_embedding]

    return {
        "path": str(path),
        "kind": "adapter",
        "type": config.get("peft_type"),
        "base": config.get("base_model_name_or_path"),
        "alpha": config.get("lora_alpha"),
        "bytes": folder.weight_bytes,
        "stamp": stamp.model_dump(exclude_none=True) if stamp else config.get("sqft"),
        "mask_hash": folder.mask_hash,
        "scale_hash": config.get("scale_hash"),
        "rank_choices": config.get("rank_choices"),
        "sparse": config.get("sparse"),
        "quantization_aware": config.get("quantization_aware"),
        "training": _training(folder.path / TRAINING),
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
    if not isinstance(losses, list):
        raise CheckpointError(f"{file}: losses is no list: copy the folder again")
    kept = {key: report.get(key) for key in ("tuner", "training", "dtype", "tokens", "seconds")}
    return {**kept, "first_loss": losses[0], "last_loss": losses[-1]}


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
