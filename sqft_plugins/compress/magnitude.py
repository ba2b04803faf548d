"""Magnitude pruning: the smallest |W| of each output row, or N:M group. The baseline that needs no data."""

from __future__ import annotations

from torch import Tensor

from sqft_plugins.mask import Pattern
from sqft_plugins.plugins.protocols import Statistic


class Magnitude:
    name = "magnitude"
    statistic: Statistic = "none"

    def prune(self, weight: Tensor, statistic: Tensor | None, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """weight [out, in] → pruned weight, mask."""
        mask = pattern.mask(weight.abs().float())
        return weight.masked_fill(~mask, 0), mask
