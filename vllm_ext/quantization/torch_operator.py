"""The reference: the weight dequantized once, and a dense GEMM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sqft_plugins.grid import QuantizedWeight, dequantize, quantize
from sqft_plugins.mask import pack_mask, unpack_mask
from vllm_ext.quantization.operators import Problem, check_pruned


@dataclass
class TorchState:
    """weight: [out, in] in the dtype of the activations. scale: float32 [out, groups]; zero_point: uint8."""

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    mask: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.weight, self.scale, self.zero_point, self.mask))


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
        check_pruned(codes, state.zero_point, unpack_mask(state.mask, state.shape[1]).to(codes.device))
        return dequantize(codes, state.scale, state.zero_point, state.weight.dtype)

    def linear(self, state: TorchState, x: Tensor, bias: Tensor | None, plane: Tensor | None = None) -> Tensor:
        return F.linear(x, state.weight if plane is None else plane, bias)

    def unpack(self, state: TorchState, plane: Tensor | None = None) -> tuple[QuantizedWeight, Tensor]:
        # A weight rounded to bf16 is off by 2^-9 of at most 15 steps: the nearest code is still its own.
        weight = state.weight if plane is None else plane
        codes = quantize(weight, state.scale, state.zero_point)
        mask = unpack_mask(state.mask, state.shape[1])
        return QuantizedWeight(codes, state.scale, state.zero_point), mask
