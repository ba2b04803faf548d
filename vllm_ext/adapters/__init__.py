"""Elastic adapters in vLLM: a rank per request. docs/how-to/serve-vllm.md, section Adapters."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_ext.adapters.offline import lora_request

__all__ = ["lora_request", "register"]


def register() -> None:
    """In any process of vLLM: the worker's loader, the CPU LoRA path, the checks of a request and, where
    SQFT_ADAPTERS_DIR is set, the names. Idempotent."""
    from vllm_ext.adapters.blocks import patch_blocks
    from vllm_ext.adapters.failures import patch_failures
    from vllm_ext.adapters.kinds import HANDLERS
    from vllm_ext.adapters.load import LoraHandler, patch_identity, patch_worker
    from vllm_ext.adapters.lora_cpu import patch_lora_cpu
    from vllm_ext.adapters.offline import patch_admission
    from vllm_ext.adapters.serving import patch_loading, patch_serving
    from vllm_ext.variables import ADAPTERS_DIR

    HANDLERS.setdefault("lora", LoraHandler())
    patch_worker()
    patch_identity()
    patch_failures()
    patch_loading()
    patch_lora_cpu()
    patch_blocks()
    patch_admission()
    if os.environ.get(ADAPTERS_DIR):
        from vllm_ext.adapters.resolver import register_resolver

        register_resolver()
        patch_serving()


def __getattr__(name: str) -> Any:
    if name == "lora_request":
        from vllm_ext.adapters.offline import lora_request

        return lora_request
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
