"""Whether the base of a run stays packed in memory: each of its weights made into floats in the forward pass and once
more in the backward pass, and dropped again (`sqft_plugins.checkpoint.packed_layers`)."""

from __future__ import annotations

import os
from typing import Any

import torch

from sqft_plugins.adapter.lora_config import is_named
from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.errors import SQFTError
from sqft_plugins.tune.settings import AdapterSettings, TrainSettings


def stays_packed(base: ModelFolder, adapter: AdapterSettings, training: TrainSettings) -> bool:
    """As `training.base_weights` asks: unpacking costs time, more in bfloat16 where products are fast. Raises SQFTError
    for "packed" where it cannot be."""
    if training.base_weights == "float":
        return False
    why = _why_not(base, adapter)
    if why is not None:
        raise SQFTError(f"base_weights=packed: {why}, leave it out")
    return True


def load_base(base: ModelFolder, adapter: AdapterSettings, dtype: torch.dtype, packed: bool) -> Any:
    """The model that is tuned. Raises CheckpointError, GridError."""
    if not packed:
        return load_model(base.path, dtype=dtype)
    from sqft_plugins.checkpoint.load_packed import load_packed

    targets = adapter.target_modules

    def adapted(name: str) -> bool:
        return isinstance(targets, list) and is_named(targets, name)

    return load_packed(base.path, dtype, adapted)


def _why_not(base: ModelFolder, adapter: AdapterSettings) -> str | None:
    if base.grid is None:
        return f"{base.path} is float"
    if adapter.quantization_aware and adapter.rounding != "compensated":
        return "codes are rounded in each step, of floats (--rounding compensated settles once)"
    if torch.cuda.is_available():
        return "the model is trained on a GPU, where this was not tried"
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        return "FSDP shards floats"
    return None
