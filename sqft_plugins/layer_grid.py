"""The grid under one adapted layer: what a quantization-aware adapter needs beside W, A and B."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sqft_plugins.errors import SQFTError
from sqft_plugins.grid import Grid, QuantizedWeight
from sqft_plugins.grid.packed import PackedWeight


@dataclass
class LayerGrid:
    """The frozen numbers of one weight [out, in], its mask, and whether it holds codes already.

    grid: kind, scales, zero points, offsets.
    mask: bool [out, in], a byte a weight; None where it is the nonzero pattern of a float base, or `dense`.
    on_grid: whether the base weight is dequantized codes ("int4" base), not the float weight that they were made from.
    dense: whether no weight is pruned, whatever is 0: the mask is all ones.
    codes: uint8 [out, in] of the base, where its own dtype, bf16 or fp16, does not tell them; None where it does.
    """

    grid: Grid
    mask: Tensor | None = None
    on_grid: bool = False
    dense: bool = False
    codes: Tensor | None = None

    def quantize(self, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        """uint8 codes [rows, in] of `weight` [rows, in] on the grid of these rows."""
        return self.grid.quantize(weight, rows)

    def dequantize(self, codes: Tensor, rows: slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        """[rows, in] in `dtype`."""
        return self.grid.dequantize(codes, rows, dtype)

    def with_codes(self, codes: Tensor) -> QuantizedWeight:
        return QuantizedWeight(codes, self.grid)

    @property
    def device(self) -> torch.device:
        return self.grid.device

    def to(self, device: torch.device) -> LayerGrid:
        mask, codes = (None if part is None else part.to(device) for part in (self.mask, self.codes))
        return LayerGrid(self.grid.to(device), mask, self.on_grid, self.dense, codes)


class PackedLayerGrid(LayerGrid):
    """The grid of a dense base of codes that stays packed: made of `packed` whenever it is asked for."""

    def __init__(self, packed: PackedWeight):
        self.packed, self.mask, self.on_grid, self.dense, self.codes = packed, None, True, True, None

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        return self.packed.rows(slice(None)).grid

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, device: torch.device) -> LayerGrid:
        if device.type != "cpu":
            raise SQFTError(f"device={device}: packed weights are for CPUs, load the base with load_model")
        return self
