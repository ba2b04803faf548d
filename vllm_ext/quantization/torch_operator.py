"""The reference: the weight dequantized once, and a dense GEMM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sqft_plugins.grid import QuantizedWeight, dequantize
from sqft_plugins.mask import pack_mask, unpack_mask
from vllm_ext.quantization.operators import Problem, check_pruned


@dataclass
class TorchState:
    """weight: [out, in] in the dtype of the activations. scale: float32 [out, groups]; zero_point: uint8. mask: uint8
    [out, ceil(in / 8)], packed."""

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    mask: Tensor


class TorchOperator:
    """Takes every shard and every device; needs the memory of the float weight."""

    name = "torch"

    def why_not(self, problem: Problem) -> str | None:
        return None

    def prepare(self, weight: QuantizedWeight, mask: Tensor, dtype: torch.dtype) -> TorchState:
        packed = pack_mask(mask).to(weight.codes.device)
        return TorchState(weight.dequantize(dtype), weight.scale, weight.zero_point, packed)

    def plane(self, state: TorchState, codes: Tensor) -> Tensor:
        """The plane is the float weight [out, in]."""
        check_pruned(codes, state.zero_point, unpack_mask(state.mask, codes.shape[1]).to(codes.device))
        return dequantize(codes, state.scale, state.zero_point, state.weight.dtype)

    def linear(self, state: TorchState, x: Tensor, bias: Tensor | None, plane: Tensor | None = None) -> Tensor:
        return F.linear(x, state.weight if plane is None else plane, bias)
