"""What vLLM's loaders cannot read, unpacked on its way to them, one module at a time.

vLLM's default loader reads every tensor of a folder and hands it to the model by name. That stream is ours for a
compact folder, whose tensors have other names (the same tensors as in the INT4 folder it was made from), and for one of
a width without a kernel (float weights: dequantized.py).
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
from vllm_ext.quantization.dequantized import dequantized_stream
from vllm_ext.quantization.widths import is_dequantized


@replaces(DefaultModelLoader, "compact folders, and those of other widths than 4 bits, are refused")
def get_all_weights(self: Any, model_config: Any, model: Any) -> Iterator[tuple[str, Tensor]]:
    if model_config.quantization == METHOD:
        folder = ModelFolder(local_folder(model_config.model))
        if folder.int4.name == Compact.name:
            return int4_stream(folder)
        if is_dequantized(folder.int4.grid.kind.name):
            return dequantized_stream(folder, model_config.dtype)
    return get_all_weights.original(self, model_config, model)


def patch() -> bool:
    """Puts ours in place of the default loader's stream, for such folders. Idempotent."""
    return apply(get_all_weights)


def check_stream() -> None:
    """Raises DependencyError where such folders cannot be loaded."""
    if not get_all_weights.is_applied:
        raise DependencyError(
            "this vLLM loads weights in another way: give it an INT4 folder, of a compact one that of "
            "`sqft compact --expand MODEL --out FOLDER`"
        )
