"""Loading a quantized model, a folder or a file, whose weights stay packed: its float weights are never in memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqft_plugins.checkpoint.dequantize import load_filled, skeleton_of
from sqft_plugins.checkpoint.load import as_checkpoint_error
from sqft_plugins.checkpoint.model_file import ModelFile, open_model
from sqft_plugins.checkpoint.packed_layers import PackedEmbedding, PackedLinear
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid.packed import PackedWeight
from sqft_plugins.progress import quiet_libraries


def load_packed(
    path: str | Path, dtype: torch.dtype, adapted: Callable[[str], bool] = lambda name: False
) -> PreTrainedModel:
    """What `load_model` loads, on the CPU, with `PackedLinear` and `PackedEmbedding` in the place of quantized layers:
    the same floats, made when they are asked for. Quantized weights that are no such layers are floats.

    path: a quantized folder, or a file that a plug-in reads.
    dtype: of the floats.
    adapted: of a module's name, whether it gets an adapter: an embedding that does is floats, as PEFT wants it.

    Raises CheckpointError, GridError.
    """
    folder = open_model(path)
    if folder.grid is None:
        raise CheckpointError(f"model {path} is float, and has nothing packed: load_model loads it")
    held: dict[str, PackedWeight] = {}  # by the path in the model

    with as_checkpoint_error(path), quiet_libraries():
        skeleton = skeleton_of(folder)
        layers = {
            name: where
            for name, where in skeleton.layers.items()
            if can_be_packed(layer := skeleton.empty.get_submodule(where))
            and not (isinstance(layer, nn.Embedding) and adapted(where))
        }

        def weight(name: str, transposed: bool) -> Tensor:
            if name not in layers:
                exact = folder.quantized(name).dequantize()
                return exact.t().contiguous() if transposed else exact
            held[layers[name]] = packed = folder.packed(name)
            return torch.zeros((), dtype=dtype).expand(packed.shape)  # one number in memory

        if isinstance(folder, ModelFile):
            model = folder.load(dtype, fill=weight)
        else:
            model = load_filled(folder, skeleton, weight, dtype)

    for where, packed in held.items():
        swap_tied(model, model.get_submodule(where).get_parameter("weight"), packed, dtype)
    return model.eval()


def can_be_packed(layer: nn.Module) -> bool:
    """Whether a layer is nothing but a product with its weight, or takes rows of it by token numbers alone."""
    if type(layer) is nn.Linear:
        return True
    return isinstance(layer, nn.Embedding) and len(inspect.signature(layer.forward).parameters) == 1


def swap_tied(model: nn.Module, stand_in: nn.Parameter, packed: PackedWeight, dtype: torch.dtype) -> None:
    """Puts packed layers in the place of all layers that share the parameter `stand_in`."""
    sharing = [name for name, layer in model.named_modules() if layer._parameters.get("weight") is stand_in]
    for name in sharing:
        layer = model.get_submodule(name)
        parent, _, child = name.rpartition(".")
        if isinstance(layer, nn.Embedding):
            setattr(model.get_submodule(parent), child, PackedEmbedding(layer, packed, dtype))
        elif isinstance(layer, nn.Linear):
            setattr(model.get_submodule(parent), child, PackedLinear(packed, dtype, layer.bias))
        else:
            raise CheckpointError(f"{name} shares a packed weight and is a {type(layer).__name__}: use load_model")
