"""The INT4 grid under one adapted layer: what a quantization-aware adapter needs beside W, A and B."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sqft_plugins.grid import QuantizedWeight, dequantize, quantize


@dataclass
class LayerGrid:
    """Scales and zero points of one weight [out, in], its mask, and whether it holds codes already.

    scale: float32 [out, groups].
    zero_point: uint8 [out, groups].
    mask: bool [out, in], a byte a weight; None where it is the nonzero pattern of a float base.
    on_grid: whether the base weight is dequantized codes ("int4" base), not the float weight that they were made from.
    """

    scale: Tensor
    zero_point: Tensor
    mask: Tensor | None = None
    on_grid: bool = False

    def quantize(self, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        """uint8 codes [rows, in] of `weight` [rows, in] on the grid of these rows."""
        return quantize(weight, self.scale[rows], self.zero_point[rows])

    def dequantize(self, codes: Tensor, rows: slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        """[rows, in] in `dtype`; exact in float32."""
        return dequantize(codes, self.scale[rows], self.zero_point[rows], dtype)

    def with_codes(self, codes: Tensor) -> QuantizedWeight:
        return QuantizedWeight(codes, self.scale, self.zero_point)

    def to(self, device: torch.device) -> LayerGrid:
        mask = None if self.mask is None else self.mask.to(device)
        return LayerGrid(self.scale.to(device), self.zero_point.to(device), mask, self.on_grid)
