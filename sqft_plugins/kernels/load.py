"""Loading an INT4 folder into packed layers, one after the other: its float weights are never in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.dequantize import load_filled
from sqft_plugins.checkpoint.load import as_checkpoint_error
from sqft_plugins.errors import KernelError
from sqft_plugins.hardware import release_memory
from sqft_plugins.kernels.accelerate import density_of, summary, swap, uses_of, why_not
from sqft_plugins.kernels.weight import SparseInt4Weight
from sqft_plugins.progress import quiet_libraries, say


def load_accelerated(path: str | Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The model of an INT4 folder, for inference: what `accelerate(load_model(path, dtype))` makes, without the float
    weights that `load_model` begins with, and without a way back (`undo`).

    dtype: of the activations and of what is not INT4. Raises KernelError for a folder without INT4 layers, or with one
    that cannot run packed; CheckpointError, GridError.
    """
    folder = ModelFolder(path)
    if folder.grid is None:
        raise KernelError(f"model {path} has no INT4 layers: `sqft quantize` makes an INT4 folder of it")
    made: dict[str, SparseInt4Weight] = {}

    def pack(name: str, transposed: bool) -> Tensor:
        weight = folder.quantized(name)
        made[name] = SparseInt4Weight.from_quantized(weight)
        stands_in = torch.zeros((), dtype=number).expand(weight.codes.shape)  # one number in memory
        return stands_in.t() if transposed else stands_in

    with as_checkpoint_error(path), quiet_libraries():
        number = dtype if isinstance(dtype, torch.dtype) else AutoConfig.from_pretrained(path).dtype or torch.float32
        model, layers = load_filled(folder, pack, dtype)
    other = sorted(set(folder.int4.modules) - set(layers))
    if other:
        raise KernelError(f"model {path}: {other[0]} is no layer of its own: load it without accelerating it")
    uses = uses_of(model)
    for name, where in layers.items():
        layer: Any = model.get_submodule(where)
        why = why_not(layer, uses[id(layer.weight)])
        if why is not None:
            raise KernelError(f"model {path}: {name} cannot run packed, {why}: load it without accelerating it")
        swap(model, where, made.pop(name))
    release_memory()
    say(f"{path}: {summary(len(layers), density_of(model))}")
    return model.eval()
