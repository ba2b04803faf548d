"""A weight on its grid: codes, and the numbers that say what they are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sqft_plugins.grid.frozen import Grid
from sqft_plugins.grid.kinds import INT4, MAX_CODE, SYMMETRIC_ZERO_POINT
from sqft_plugins.grid.scales import make_grid
from sqft_plugins.mask import lost_zeros


class QuantizedWeight(NamedTuple):
    """One weight on the grid.

    codes: uint8 [out, in], 0..15. scale: float32 [out, groups], 8 significant bits. zero_point: uint8 [out, groups].
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in]; exact in float32 and float64."""
        return dequantize(self.codes, self.scale, self.zero_point, dtype=dtype)

    @property
    def group_size(self) -> int:
        """The columns that share one scale; `in` where there is one group for the whole row."""
        return self.codes.shape[1] // self.scale.shape[1]

    def steps(self) -> Tensor:
        """`codes - zero_point`, int8 [out, in], -15..15; 0 is an exact zero."""
        return steps(self.codes, self.zero_point)

    def lost_zeros(self, mask: Tensor) -> int:
        """How many of the weights that `mask` (bool [out, in], True = kept) prunes are not exactly 0."""
        return lost_zeros(self.steps(), mask)

    def fits_signed(self) -> bool:
        """Whether every step lies in -8..7, the range of a signed 4-bit number (GGUF's Q4_0)."""
        steps = self.steps()
        return int(steps.min()) >= -SYMMETRIC_ZERO_POINT and int(steps.max()) <= MAX_CODE - SYMMETRIC_ZERO_POINT


def steps(codes: Tensor, zero_point: Tensor) -> Tensor:
    """`codes - zero_point` of codes [out, in] and zero_point [out, groups], both uint8 → int8 [out, in]."""
    grouped = codes.view(torch.int8).unflatten(1, (zero_point.shape[1], -1))  # 0..15: the same in int8
    return (grouped - zero_point.view(torch.int8).unsqueeze(-1)).flatten(1)


def zero_codes(zero_point: Tensor, in_features: int) -> Tensor:
    """The code of 0 at every place: zero_point [out, groups] → uint8 [out, in]."""
    return zero_point.repeat_interleave(in_features // zero_point.shape[1], dim=1)


def quantize(weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """`clamp(round(weight / scale) + zero_point, 0, 15)` → uint8 codes [out, in] of INT4; halves round to even.

    weight: [out, in], any float dtype; scale, zero_point: [out, groups]. An exact 0 gets the code `zero_point`.
    """
    return Grid(INT4, scale, zero_point).quantize(weight)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`(codes - zero_point) * scale` → [out, in] in `dtype`; computed, and exact, in float32."""
    return Grid(INT4, scale, zero_point).dequantize(codes, dtype=dtype)


def round_to_nearest(
    weight: Tensor, mask: Tensor | None = None, group_size: int = 32, symmetric: bool = True
) -> QuantizedWeight:
    """Round-to-nearest INT4 of `weight` [out, in] with the pruned weights (`mask` [out, in] False) kept at zero."""
    if mask is not None:
        weight = weight.masked_fill(~mask, 0)
    grid = make_grid(weight, group_size, symmetric)
    assert grid.zero_point is not None
    return QuantizedWeight(grid.quantize(weight), grid.scale, grid.zero_point)
