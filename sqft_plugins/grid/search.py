"""The nearest level of a table. torch.bucketize gives the same codes, in 8 to 16 times the time on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class LevelSearch(NamedTuple):
    """A table, cut into equal bins so narrow that none has more than one boundary between two levels.

    `bin(number)` rises with the number, however it is rounded. So all boundaries of lower bins are below the number,
    and it is compared with that of its own bin only.

    boundaries: [bins], the largest number that belongs to the lower level; infinite where the bin has no boundary.
    codes: uint8 [2 · bins], of each bin the code at or below its boundary, and the code above it.
    low: the lowest boundary. bins_each: the bins to 1.
    """

    boundaries: Tensor
    codes: Tensor
    low: float
    bins_each: float

    @classmethod
    def of(cls, levels: Sequence[float], dtype: torch.dtype, device: torch.device) -> LevelSearch:
        """For numbers of `dtype`. levels: of each code, at least two different ones; NaN is never chosen."""
        code_of: dict[float, int] = {}
        for code, level in enumerate(levels):
            if not math.isnan(level):
                code_of.setdefault(level, code)  # -0.0 == 0.0
        ascending = sorted(code_of)
        codes = torch.tensor([code_of[level] for level in ascending], dtype=torch.uint8)

        boundaries = _boundaries(ascending, codes, dtype)
        low, high = float(boundaries[0]), float(boundaries[-1])
        bins_each = 1.25 / float(boundaries.diff().min()) if len(boundaries) > 1 else 1.0  # 1.25: bins are rounded
        unfilled = torch.full((int((high - low) * bins_each) + 2,), math.inf, dtype=dtype, device=device)
        search = cls(unfilled, codes, low, bins_each)

        bins = search.bins(boundaries.to(device)).long()
        filled = unfilled.index_copy(0, bins, boundaries.to(device))
        upper = filled.isfinite().cumsum(0)  # the place, among `ascending`, of the level above the bin's boundary
        lower = upper - filled.isfinite().long()
        return search._replace(boundaries=filled, codes=codes.to(device)[torch.stack([lower, upper], 1)].flatten())

    def __call__(self, numbers: Tensor) -> Tensor:
        """The code of the nearest level → uint8 of the shape of `numbers`; of NaN, some code."""
        flat = numbers.flatten()
        bins = self.bins(flat)
        above = flat > self.boundaries.index_select(0, bins)
        return self.codes.index_select(0, bins.mul_(2).add_(above.view(torch.int8))).view(numbers.shape)

    def bins(self, numbers: Tensor) -> Tensor:
        """The bin of each number → int32 of the shape of `numbers`."""
        last = len(self.boundaries) - 1
        scaled = (numbers - self.low).mul_(self.bins_each).clamp_(0, last)
        return scaled.to(torch.int32).clamp_(0, last)  # NaN


def _boundaries(ascending: Sequence[float], codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Between each two neighbouring levels the largest number of `dtype` that belongs to the lower one: their middle
    where its code is even, else the number below it."""
    middles = torch.tensor([(low + high) / 2 for low, high in pairwise(ascending)], dtype=torch.float64)
    rounded = middles.to(dtype)
    upper_takes_it = (rounded.double() == middles) & (codes[1:] % 2 == 0)
    too_high = rounded.double() > middles  # the middle is no number of `dtype`
    below = torch.nextafter(rounded, torch.full_like(rounded, -math.inf))
    return torch.where(too_high | upper_takes_it, below, rounded)
