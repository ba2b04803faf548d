"""A model whose weights stay on disk: blocks are loaded when they are worked on, everything else when it is called.

Parameters are on the meta device, so a model of any depth costs nothing; buffers are real: the class computes them (the
frequencies of rotary embeddings, the scale of Gemma's embedding), or the files have them and they are small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.stored_names import StoredNames
from sqft_plugins.errors import CheckpointError
from sqft_plugins.structure import body_of, empty_model, find_blocks, transformers_config


class Skeleton:
    """A float model folder as a transformers model without weights.

    model: the model, in eval mode, to be run as `body_of(model)(...)`. stored: what its parameters are called in the
    folder's files. Whatever is loaded is float32.

    Raises CheckpointError for a folder that lacks a parameter or a buffer.
    """

    def __init__(self, folder: ModelFolder):
        self.folder = folder
        config = transformers_config(folder.path)
        with _parameters_on_meta():
            model = empty_model(config, folder.path, dtype=torch.float32)
        self.model: PreTrainedModel = model.eval()
        self.stored = StoredNames(self.model, folder)
        self._of = own_names(self.model, self.stored)
        self._buffers_wait = True
        self._running = False
        self._prefix, blocks = find_blocks(self.model)
        inside = {module for block in blocks for module in block.modules()}
        self._outside = {n: m for n, m in self.model.named_modules() if m not in inside and m._parameters}
        for name, module in self._outside.items():
            module._parameters = _WhenRead(module._parameters, self._loader(name, module))
            module.register_forward_hook(self._freed, always_call=True)
        body = body_of(self.model)
        body.register_forward_pre_hook(lambda module, inputs: self._begin(), prepend=True)
        body.register_forward_hook(lambda module, inputs, output: self._end(), always_call=True)

    def sources(self, parameter: str) -> list[str]:
        """The tensors of the files that a parameter is made of; of a tied one, those of the parameter that they have.
        None for the head where the files lack it."""
        return self.stored.sources(self._of.get(parameter, parameter))

    def load(self, name: str, module: nn.Module, recurse: bool = True) -> None:
        """Reads the parameters of `module`, called `name` in the model, and, with `recurse`, of all modules in it."""
        if self._buffers_wait:  # of all modules, before the first of them computes
            self._load_buffers()
            self._buffers_wait = False
        for path, parameter in module.named_parameters(prefix=name, recurse=recurse, remove_duplicate=False):
            owner, _, own = path.removeprefix(f"{name}.").rpartition(".")
            _put(module.get_submodule(owner), own, self._read(path, parameter).to(torch.float32, copy=True))

    def _read(self, path: str, wanted: Tensor) -> Tensor:
        tensor = self.stored.read(self._of.get(path, path))
        if tensor.shape != wanted.shape:
            raise CheckpointError(
                f"tensor {self.sources(path)[0]} is {tuple(tensor.shape)} but its config.json says "
                f"{tuple(wanted.shape)}: copy the model again"
            )
        return tensor

    def _load_buffers(self) -> None:
        """Buffers that the files have, such as the correction of a router's scores."""
        for path, buffer in self.model.named_buffers():
            if path in self.stored:
                owner, _, own = path.rpartition(".")
                self.model.get_submodule(owner)._buffers[own] = self._read(path, buffer).to(buffer.dtype, copy=True)

    def load_block(self, index: int, block: nn.Module) -> None:
        self.load(f"{self._prefix}.{index}", block)

    @staticmethod
    def free(module: nn.Module, recurse: bool = True) -> None:
        """Forgets the parameters of `module` and, with `recurse`, of all modules in it."""
        for owner in module.modules() if recurse else [module]:
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    _put(owner, name, parameter.to("meta"))

    def _begin(self) -> None:
        self._running = True

    def _end(self) -> None:
        self._running = False
        for module in self._outside.values():  # what others have read of it
            self.free(module, recurse=False)

    def _freed(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._running:
            self.free(module, recurse=False)

    def _loader(self, name: str, module: nn.Module) -> Callable[[], None]:
        def load() -> None:
            if self._running:
                self.load(name, module, recurse=False)

        return load


class _WhenRead(dict[str, Any]):
    """The parameters of a module outside the blocks, loaded when one of them is read while the model runs: by the
    module itself, or by another (Llama 4 asks for the device of its embedding's weight before it calls it)."""

    def __init__(self, parameters: Mapping[str, Any], load: Callable[[], None]):
        super().__init__(parameters)
        self._load = load

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if value is not None and value.is_meta:
            self._load()
        return super().__getitem__(name)


def own_names(model: PreTrainedModel, stored: StoredNames) -> dict[str, str]:
    """Parameter → the parameter whose value the files have: itself, or of tied ones, of which a folder has one, that.

    Raises CheckpointError for a parameter or a buffer that the folder does not have. Nothing here runs the head, which
    may be missing.
    """
    tied: dict[int, str] = {}
    model.tie_weights()
    result = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        own = name if name in stored else tied.get(id(parameter))
        if own is not None:
            tied.setdefault(id(parameter), own)
            result[name] = own

    head = model.get_output_embeddings()
    optional = set() if head is None else {id(parameter) for parameter in head.parameters()}
    missing = [
        name
        for name, parameter in model.named_parameters()
        if name not in result and id(parameter) not in tied and id(parameter) not in optional
    ]
    saved = model.state_dict().keys()
    missing += [name for name, _ in model.named_buffers() if name in saved and name not in stored]
    if missing:
        raise CheckpointError(
            f"model {stored.files.path} has no tensor {missing[0]} (and lacks {len(missing) - 1} more): its files name "
            "the weights otherwise than transformers does, or belong to another config.json"
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
