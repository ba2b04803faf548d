"""The gguf package, imported when it is first used, and the names that it has for tensors."""

from __future__ import annotations

from functools import cache
from typing import Any

from gguf_ext.errors import UnsupportedArchitectureError, missing_package


def require_gguf() -> Any:
    """The gguf package. Raises DependencyError."""
    try:
        import gguf
    except ImportError as error:
        raise missing_package("gguf") from error
    return gguf


@cache
def tensor_names(architecture: str, blocks: int) -> Any | None:
    """The gguf package's map of tensor names for an architecture of llama.cpp; None where it does not know that."""
    gguf = require_gguf()
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(kinds[architecture], blocks) if architecture in kinds else None


@cache
def module_name(architecture: str, module: str) -> str:
    """The name in a file of a module of the checkpoint, `{i}` for the layer in both: `model.layers.{i}.mlp.up_proj` →
    `blk.{i}.ffn_up`. Raises UnsupportedArchitectureError for a module that the gguf package does not know."""
    names = tensor_names(architecture, 1)
    found = None if names is None else names.get_name(module.format(i=0))
    if found is None:
        raise UnsupportedArchitectureError(
            f"the gguf package has no name for {module} in {architecture}: give its Rule a target"
        )
    return str(found).replace("blk.0.", "blk.{i}.")
