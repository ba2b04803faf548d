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
from sqft_plugins.checkpoint.compact_convert import int4_stream
from sqft_plugins.checkpoint.formats.compact import METHOD, Compact
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.errors import DependencyError
from vllm_ext.patching import apply, replaces


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
