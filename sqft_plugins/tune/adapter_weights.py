"""The tensors of an adapter folder of PEFT: adapter_model.safetensors or, from older versions, adapter_model.bin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sqft_plugins.errors import CheckpointError

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PAIRS = ((".lora_A.", ".lora_B."), (".lora_embedding_A", ".lora_embedding_B"))


def weights_file(folder: Path) -> Path:
    """That which PEFT reads: of both the safetensors; its path also where there is none."""
    pickled = folder / PICKLED
    return pickled if pickled.is_file() and not (folder / WEIGHTS).is_file() else folder / WEIGHTS


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """Name → tensor. Of a pickle nothing but tensors is loaded. Raises CheckpointError for a damaged file, and for one
    with half of a LoRA."""
    file = weights_file(folder)
    if file.name == PICKLED:
        tensors = _unpickled(file)
    else:
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged or cut off ({error}): copy the adapter again") from error
    _check_pairs(tensors, file)
    return tensors


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise anything of a damaged file
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:80]
        raise CheckpointError(f"{file} is damaged, or no file of tensors alone ({why}): copy it again") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise CheckpointError(f"{file} holds no tensors by name: copy it again")
    return found


def _check_pairs(names: Iterable[str], file: Path) -> None:
    there = set(names)
    for A, B in PAIRS:
        for one, other in ((A, B), (B, A)):
            for name in sorted(there):
                module, found, _ = name.partition(one)
                if found and name.replace(one, other) not in there:
                    raise CheckpointError(
                        f"{file} has {one.strip('.')} of {module.removeprefix('base_model.model.')} but no "
                        f"{other.strip('.')}: copy the adapter again"
                    )
