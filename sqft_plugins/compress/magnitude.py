"""Magnitude pruning: the smallest |W| of each output row. The baseline that needs no data."""

from __future__ import annotations

from torch import Tensor

from sqft_plugins.mask import lowest_mask
from sqft_plugins.plugins.protocols import Statistic


class Magnitude:
    name = "magnitude"
    statistic: Statistic = "none"

    def prune(self, weight: Tensor, statistic: Tensor | None, sparsity: float) -> tuple[Tensor, Tensor]:
        """weight [out, in] → pruned weight, mask."""
        mask = lowest_mask(weight.abs().float(), sparsity)
        return weight.masked_fill(~mask, 0), mask
