"""What is not adapted, over a float base whose grid is elsewhere: it has to be what it will be after a merge."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from peft_ext.registry import BaseTunerLayer
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.model_file import ModelFile
from sqft_plugins.checkpoint.packed_layers import PackedEmbedding, PackedLinear
from sqft_plugins.structure import weight_of


def rest_off_grid(model: nn.Module, folder: ModelFolder, adapted: Collection[str]) -> list[str]:
    """What `model` has otherwise than the merged model will: modules that are quantized in `folder` and not `adapted`,
    and float tensors of a file, which a merge copies (a float16 embedding, say)."""
    modules = dict(model.named_modules())
    names = [name for name in folder.int4.modules if name not in adapted and name in modules]
    packed = (PackedLinear, PackedEmbedding)  # as the folder has them
    names = [name for name in names if not isinstance(modules[name], packed)]
    floats = _floats(model, folder, adapted)
    return [name for name in names if not torch.equal(_out_in(modules[name]), _merged(modules[name], folder, name))] + [
        name for name, own in floats.items() if not torch.equal(own, _as(own, folder.tensor(name)))
    ]


def put_rest_on_grid(model: nn.Module, folder: ModelFolder, adapted: Collection[str]) -> list[str]:
    """Writes into `model`, in place, what `rest_off_grid` finds → its names."""
    rest = rest_off_grid(model, folder, adapted)
    floats = _floats(model, folder, adapted)
    for name in rest:
        if name in floats:
            floats[name].copy_(folder.tensor(name))
        else:
            module = model.get_submodule(name)
            _out_in(module).copy_(_merged(module, folder, name))
    return rest


def listed(names: list[str]) -> str:
    """The subject of a sentence: "a is", "a and 1 more module are", "a and 5 more modules are"."""
    more = len(names) - 1
    return f"{names[0]} is" if not more else f"{names[0]} and {more} more module{'s' * (more > 1)} are"


def _merged(module: nn.Module, folder: ModelFolder, name: str) -> Tensor:
    weight = _out_in(module)
    return folder.quantized(name).dequantize(weight.dtype).to(weight.device)


def _as(own: Tensor, stored: Tensor) -> Tensor:
    return stored.to(own.device, own.dtype)


def _floats(model: nn.Module, folder: ModelFolder, adapted: Collection[str]) -> dict[str, Tensor]:
    """Name → the tensor in `model` (a view) of what a file holds as floats; none for a folder, whose floats are those
    of the base that it was made from."""
    if not isinstance(folder, ModelFile):
        return {}
    coded = {f"{module}.weight" for module in (*folder.int4.modules, *adapted)}
    own = {name.replace(".base_layer.", "."): tensor.detach() for name, tensor in model.named_parameters()}
    return {name: own[name] for name in folder.tensor_names if name in own and name not in coded}


def _out_in(module: nn.Module) -> Tensor:
    """The weight of a linear layer, adapted or not, as [out, in]; a view."""
    base: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return weight_of(base)
