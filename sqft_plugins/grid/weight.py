"""A weight on its grid: codes, and the numbers that say what they are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sqft_plugins.errors import GridError
from sqft_plugins.grid.frozen import Grid
from sqft_plugins.grid.kind import GridKind
from sqft_plugins.grid.kinds import INT4
from sqft_plugins.grid.scales import make_grid
from sqft_plugins.mask import lost_zeros


class QuantizedWeight(NamedTuple):
    """One weight on its grid. codes: uint8 [out, in]."""

    codes: Tensor
    grid: Grid

    @property
    def scale(self) -> Tensor:
        """float32 [out, groups]."""
        return self.grid.scale

    @property
    def zero_point(self) -> Tensor:
        """uint8 [out, groups]. Raises GridError for a grid without."""
        if self.grid.zero_point is None:
            raise GridError(f"grid {self.grid.kind.name!r} has no zero point: take one of integers, such as int4")
        return self.grid.zero_point

    @property
    def group_size(self) -> int:
        """The neighbouring columns that share one scale; `in` where there is one group for the whole row, 1 where the
        columns of a group are not neighbours (`Grid.column_group`)."""
        if self.grid.column_group is not None:
            return 1
        return self.codes.shape[1] // self.grid.groups

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in]: `Grid.dequantize`."""
        return self.grid.dequantize(self.codes, dtype=dtype)

    def steps(self) -> Tensor:
        """`codes - zero_point` of a grid of integers: `Grid.steps`."""
        return self.grid.steps(self.codes)

    def lost_zeros(self, mask: Tensor) -> int:
        """How many of the weights that `mask` (bool [out, in], True = kept) prunes are not exactly 0."""
        return lost_zeros(self.steps() if self.grid.kind.is_integer else self.dequantize(), mask)

    def fits_signed(self, bits: int = 4) -> bool:
        """Whether every step lies in the range of a signed number of `bits` bits: -8..7 for GGUF's Q4_0."""
        if not self.grid.kind.is_integer:
            return False
        steps = self.steps()
        return int(steps.min()) >= -(2 ** (bits - 1)) and int(steps.max()) < 2 ** (bits - 1)

    def with_codes(self, codes: Tensor) -> QuantizedWeight:
        """This weight with other codes, but its own wherever both have the same value: an adapter that changes nothing
        changes no byte of a file."""
        return self._replace(codes=self.grid.keep_same(codes, self.codes))

    def take(self, rows: Tensor | slice) -> QuantizedWeight:
        """Some rows, or all in another order."""
        return QuantizedWeight(self.codes[rows], self.grid.take(rows))

    def equals(self, other: QuantizedWeight) -> bool:
        """Whether the codes, the kind of grid and all its numbers are the same."""
        return torch.equal(self.codes, other.codes) and self.grid.equals(other.grid)


def int4_weight(codes: Tensor, scale: Tensor, zero_point: Tensor) -> QuantizedWeight:
    """INT4 codes uint8 [out, in], with scale float32 and zero_point uint8 [out, groups]."""
    return QuantizedWeight(codes, Grid(INT4, scale, zero_point))


def steps(codes: Tensor, zero_point: Tensor) -> Tensor:
    """`codes - zero_point` of codes [out, in] and zero_point [out, groups], both uint8 → int8 [out, in]."""
    return Grid(INT4, torch.empty_like(zero_point, dtype=torch.float32), zero_point).steps(codes)


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
    weight: Tensor,
    mask: Tensor | None = None,
    group_size: int = 32,
    symmetric: bool = True,
    kind: GridKind = INT4,
) -> QuantizedWeight:
    """Round-to-nearest of `weight` [out, in] with the pruned weights (`mask` [out, in] False) kept at zero."""
    if mask is not None:
        weight = weight.masked_fill(~mask, 0)
    grid = make_grid(weight, group_size, symmetric, kind)
    return QuantizedWeight(grid.quantize(weight), grid)
