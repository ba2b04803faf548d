"""A model whose weights stay on disk: blocks are loaded when they are worked on, everything else when it is called.

Parameters are on the meta device, so a model of any depth costs nothing; buffers (the frequencies of rotary embeddings,
the scale of Gemma's embedding) are real, since no file has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.compress.fused import lacks_fused
from sqft_plugins.errors import CheckpointError
from sqft_plugins.structure import empty_model, find_blocks, transformers_config


class Skeleton:
    """A float model folder as a transformers model without weights.

    model: the model, in eval mode, to be run as `model.base_model(...)`. names: parameter name → name in the folder's
    files. Whatever is loaded is float32.
    """

    def __init__(self, folder: ModelFolder):
        self.folder = folder
        config = transformers_config(folder.path)
        with _parameters_on_meta():
            model = empty_model(config, folder.path, dtype=torch.float32)
        self.model: PreTrainedModel = model.eval()
        self.names = stored_names(self.model, folder)
        self._prefix, blocks = find_blocks(self.model)
        inside = {module for block in blocks for module in block.modules()}
        for name, module in self.model.named_modules():
            if module not in inside and module._parameters:
                module.register_forward_pre_hook(self._loader(name))
                module.register_forward_hook(lambda module, inputs, output: self.free(module, recurse=False))

    def load(self, name: str, module: nn.Module, recurse: bool = True) -> None:
        """Reads the parameters of `module`, called `name` in the model, and, with `recurse`, of all modules in it."""
        for path, parameter in module.named_parameters(prefix=name, recurse=recurse):
            owner, _, own = path.removeprefix(f"{name}.").rpartition(".")
            tensor = self.folder.tensor(self.names[path])
            if tensor.shape != parameter.shape:
                raise CheckpointError(
                    f"tensor {self.names[path]} is {tuple(tensor.shape)} but its config.json says "
                    f"{tuple(parameter.shape)}: copy the model again"
                )
            _put(module.get_submodule(owner), own, tensor.to(torch.float32, copy=True))

    def load_block(self, index: int, block: nn.Module) -> None:
        self.load(f"{self._prefix}.{index}", block)

    @staticmethod
    def free(module: nn.Module, recurse: bool = True) -> None:
        """Forgets the parameters of `module` and, with `recurse`, of all modules in it."""
        for owner in module.modules() if recurse else [module]:
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    _put(owner, name, parameter.to("meta"))

    def _loader(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self.load(name, module, recurse=False)

        return hook


def stored_names(model: PreTrainedModel, folder: ModelFolder) -> dict[str, str]:
    """Parameter name → tensor name in the folder. They are equal, but for files of the bare body of a model (GPT-2 and
    Bloom are published so), which lack its prefix, and for tied weights, of which a folder has one.

    Raises CheckpointError for a parameter that the folder does not have.
    """
    tied: dict[int, str] = {}
    model.tie_weights()
    result = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for candidate in (folder.own_name(name), tied.get(id(parameter))):
            if candidate in folder.files:
                tied.setdefault(id(parameter), candidate)
                result[name] = candidate
                break

    missing = [name for name, _ in model.named_parameters() if name not in result]
    head = model.get_output_embeddings()
    if missing and head is not None:  # nothing here runs the head
        own = {id(parameter) for parameter in head.parameters()}
        missing = [name for name in missing if id(model.get_parameter(name)) not in own]

    if missing:
        why = lacks_fused(model)
        if why is not None:
            raise CheckpointError(f"model {folder.path} has no tensor {missing[0]}. {why}")
        raise CheckpointError(
            f"model {folder.path} has no tensor {missing[0]} (and lacks {len(missing) - 1} more): its files name the "
            "weights otherwise than transformers does, or belong to another config.json"
        )
    return result


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
