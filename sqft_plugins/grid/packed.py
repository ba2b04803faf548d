"""Weights that stay packed: a few bits each, made into floats when they are asked for.

Training over codes needs every weight twice in a step and no weight between. Held as floats a base takes 6 to 8 times
the memory of its codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sqft_plugins.grid.frozen import Grid
from sqft_plugins.grid.kind import GridKind
from sqft_plugins.grid.packing import pack, unpack
from sqft_plugins.grid.weight import QuantizedWeight

BLOCK = 2**20
"""Weights that are made into floats at once, 4 MiB: the passes over them stay in a core's cache."""


class PackedWeight(Protocol):
    """A weight [out, in] in few bytes. shape: (out, in)."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        ...

    def rows(self, rows: slice | Tensor) -> QuantizedWeight:
        """Codes and grid of some rows: a slice without a step, or int64 [n]."""
        ...


@dataclass(frozen=True)
class PackedCodes:
    """A weight whose codes lie close together, and whose frozen numbers have the narrowest dtype that holds them.

    codes: int32 [out, words], as `pack` makes them. kind, scale, zero_point, offset, column_group: as of `Grid`, the
    first and third in float32, bfloat16 or float16.
    """

    shape: tuple[int, int]
    kind: GridKind
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    offset: Tensor | None
    column_group: Tensor | None

    @classmethod
    def of(cls, weight: QuantizedWeight) -> PackedCodes:
        """The same weight, packed."""
        grid, (rows, columns) = weight.grid, weight.codes.shape
        zero_point = grid.zero_point
        if zero_point is not None and zero_point.numel() and bool((zero_point == zero_point[0, 0]).all()):
            zero_point = zero_point[:1, :1].clone().expand(zero_point.shape)  # one number in memory
        numbers = [None if part is None else _narrowest(part) for part in (grid.scale, grid.offset)]
        codes, scale = pack(weight.codes, grid.kind.bits), numbers[0]
        assert scale is not None
        return cls((rows, columns), grid.kind, codes, scale, zero_point, numbers[1], grid.column_group)

    @property
    def nbytes(self) -> int:
        parts = (self.codes, self.scale, self.zero_point, self.offset, self.column_group)
        return sum(part.untyped_storage().nbytes() for part in parts if part is not None)

    def rows(self, rows: slice | Tensor) -> QuantizedWeight:
        offset = None if self.offset is None else self.offset[rows].float()
        zero_point = None if self.zero_point is None else self.zero_point[rows]
        grid = Grid(self.kind, self.scale[rows].float(), zero_point, offset, self.column_group)
        return QuantizedWeight(unpack(self.codes[rows], self.shape[1], self.kind.bits), grid)


def _narrowest(numbers: Tensor) -> Tensor:
    """`numbers`, float32, in 16 bits where they have the same values there."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal((narrow := numbers.to(dtype)).float(), numbers):
            return narrow
    return numbers.clone()


def floats_of(weight: PackedWeight, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
    """Rows of a packed weight as floats [rows, in]: what `QuantizedWeight.dequantize` gives, block by block."""
    start, stop, _ = rows.indices(weight.shape[0])
    result = torch.empty(max(stop - start, 0), weight.shape[1], dtype=dtype)
    step = max(BLOCK // max(weight.shape[1], 1), 1)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        result[first - start : last - start] = weight.rows(slice(first, last)).dequantize(dtype)
    return result
