"""Which widths are served as codes. Imports nothing of vLLM before it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqft_plugins.grid import INT4

STOCK = ("compressed-tensors", "pack-quantized")
"""quant_method and format of the folders that stock vLLM reads, too."""


def is_dequantized(kind: str) -> bool:
    """Whether a folder of this kind of grid, such as "int3", is served with float weights here (dequantized.py): on a
    CPU vLLM's kernels, and ours, are for integers of 4 bits alone, whose groups are neighbours."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu()) and kind != INT4.name


def has_no_kernel(quantization: Mapping[str, Any]) -> bool:
    """Whether stock vLLM cannot serve a folder with this `quantization_config`, of weights alone, for its width."""
    if (quantization.get("quant_method"), quantization.get("format")) != STOCK:
        return False
    try:
        groups = [group for group in quantization["config_groups"].values() if not group.get("input_activations")]
        return any(is_dequantized(f"int{group['weights']['num_bits']}") for group in groups)
    except (KeyError, TypeError, AttributeError):
        return False  # stock vLLM says what is wrong
