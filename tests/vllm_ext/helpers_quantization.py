"""What a layer of quantization `sqft` holds, read back from the state of its operator.

vLLM hands functions to its workers by name, so they stand in a module of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sqft_plugins.grid import QuantizedWeight, int4_weight, quantize
from sqft_plugins.kernels import SparseInt4Weight
from sqft_plugins.mask import unpack_mask
from vllm_ext.quantization.torch_operator import TorchState

ROWS = 256
"""How many columns of a weight are read back through vLLM's kernel at once."""


def unpack(state: Any, plane: Any = None) -> tuple[QuantizedWeight, Tensor]:
    """The inverse of an operator's `prepare`: codes, scale, zero_point, and the mask bool [out, in], bit for bit."""
    if isinstance(state, SparseInt4Weight):
        return (state if plane is None else state.with_values(plane)).unpack(), state.mask()

    if isinstance(state, TorchState):
        weight = state.weight if plane is None else plane
        # rounded to bf16 it is off by 2^-9 of at most 15 steps: the nearest code is still its own
    else:
        # As the product with the identity: that needs no knowledge of the kernel's layout. What the kernel rounds is
        # less than half a step.
        dense = state.dense if plane is None else plane
        in_features = dense.kernel.config.partition_weight_shape[0]
        identity = torch.eye(in_features, dtype=state.dtype, device=state.mask.device)
        weight = torch.cat([dense(rows, None).t() for rows in identity.split(ROWS)], dim=1)  # [out, in]
    scale = state.scale.float()
    codes = quantize(weight, scale, state.zero_point)
    return int4_weight(codes, scale, state.zero_point), unpack_mask(state.mask, weight.shape[1])


def nbytes(state: Any) -> int:
    """All that is kept for a layer, mask and scales included."""
    return sum(part.nbytes for part in vars(state).values() if isinstance(part, Tensor))


def held(model) -> dict[str, tuple[list, list]]:
    """vLLM's name of each layer of quantization `sqft` → the codes and the mask that this worker holds."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "sqft"):
            weight, mask = unpack(module.sqft.state)
            found[name] = (weight.codes.tolist(), mask.tolist())
    return found
