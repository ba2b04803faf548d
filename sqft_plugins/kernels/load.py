"""Loading an INT4 folder into packed layers, one after the other: its float weights are never in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.dequantize import Skeleton, load_filled, skeleton_of
from sqft_plugins.checkpoint.load import as_checkpoint_error
from sqft_plugins.errors import KernelError
from sqft_plugins.grid import require_int4
from sqft_plugins.hardware import release_memory
from sqft_plugins.kernels.accelerate import density_of, summary, swap, uses_of, why_not, why_unfit
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
        skeleton = skeleton_of(folder)
        check_layers(folder, skeleton, number)
        model = load_filled(folder, skeleton, pack, dtype)

    uses = uses_of(model)
    for name, where in skeleton.layers.items():
        layer: Any = model.get_submodule(where)
        refuse(path, name, why_not(layer, uses[id(layer.weight)]))
        swap(model, where, made.pop(name))
    release_memory()
    say(f"{path}: {summary(len(skeleton.layers), density_of(model))}")
    return model.eval()


def check_layers(folder: ModelFolder, skeleton: Skeleton, dtype: torch.dtype) -> None:
    """Before a weight is read. Raises KernelError for INT4 weights that are no layer of their own, such as experts, and
    for a layer that is no plain linear. dtype: of the model."""
    require_int4(folder.int4.grid.kind, f"model {folder.path}", "the sparse kernel")
    other = sorted(set(folder.int4.modules) - set(skeleton.layers))
    if other:
        raise KernelError(f"model {folder.path}: {other[0]} is no layer of its own: load it without accelerating it")
    for name, where in skeleton.layers.items():
        refuse(folder.path, name, why_unfit(skeleton.empty.get_submodule(where), dtype))


def refuse(path: str | Path, name: str, why: str | None) -> None:
    if why is not None:
        raise KernelError(f"model {path}: {name} cannot run packed, {why}: load it without accelerating it")
