"""SQFT as plug-ins: sparse, low-precision models with elastic adapters (arXiv 2410.03750).

The core: grid, masks, elastic ranks, checkpoints, pruning, quantization, evaluation and the `sqft` command. The three
surfaces, peft_ext, vllm_ext and gguf_ext, import the core; the core knows them only through plug-in hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqft_plugins._version import VERSION
from sqft_plugins.lazy import lazy
from sqft_plugins.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from sqft_plugins.kernels.accelerate import accelerate

__version__ = VERSION
__all__ = ["__version__", "accelerate", "hookimpl"]

__getattr__ = lazy(__name__, {"accelerate": "kernels.accelerate"})  # it brings torch and transformers
