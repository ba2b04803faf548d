"""The compact form through vLLM's loaders: its weights are unpacked on their way, one module at a time.

vLLM's default loader reads every tensor of a folder and hands it to the model by name. For a compact folder, whose
tensors have other names, that stream is ours: the same tensors as in the INT4 folder it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.formats.compact import METHOD, Compact
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.checkpoint.int4 import int4_tensors
from sqft_plugins.errors import DependencyError
from vllm_ext.patching import apply, replaces


def int4_stream(folder: ModelFolder) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a compact folder, its INT4 weights as `pack-quantized` stores them."""
    grid, done = folder.int4.grid, set()
    for module in folder.int4.modules:
        done.update(folder.parts(module))
        yield from int4_tensors(module, folder.quantized(module), grid, folder.int4.scale_spec(module).dtype).items()
    done.update(name for name in folder.files if name.endswith(".bitmask"))  # masks of float weights
    for name in folder.files:
        if name not in done:
            yield name, folder.tensor(name)


@replaces(DefaultModelLoader, "compact folders are refused")
def get_all_weights(self: Any, model_config: Any, model: Any) -> Iterator[tuple[str, Tensor]]:
    if model_config.quantization == METHOD:
        folder = ModelFolder(local_folder(model_config.model))
        if folder.int4.name == Compact.name:
            return int4_stream(folder)
    return get_all_weights.original(self, model_config, model)


def patch() -> bool:
    """Puts `int4_stream` in place of the default loader's stream for compact folders. Idempotent."""
    return apply(get_all_weights)


def check_compact() -> None:
    """Raises DependencyError where compact folders cannot be loaded."""
    if not get_all_weights.is_applied:
        raise DependencyError(
            "this vLLM loads weights in another way: give it the INT4 folder, "
            "`sqft compact --expand MODEL --out FOLDER`"
        )
