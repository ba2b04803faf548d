"""Quantization `sqft`: stamped INT4 folders in vLLM, with mask and codes kept after loading."""

from __future__ import annotations


def register() -> None:
    """Makes `sqft` known to vLLM as a quantization method. Idempotent."""
    from vllm_ext.quantization import config, loading

    config.register()
    loading.register()
