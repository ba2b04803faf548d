"""Wanda: prune the smallest |W| · ‖X‖ of each output row, or N:M group (arXiv 2306.11695, equation 1)."""

from __future__ import annotations

from torch import Tensor

from sqft_plugins.mask import Pattern
from sqft_plugins.plugins.protocols import Statistic


class Wanda:
    name = "wanda"
    statistic: Statistic = "norm"

    def prune(self, weight: Tensor, statistic: Tensor | None, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """weight [out, in], statistic ‖X‖ [in] → pruned weight, mask."""
        assert statistic is not None
        mask = pattern.mask(weight.abs().float() * statistic)
        return weight.masked_fill(~mask, 0), mask
