"""Round-to-nearest on the grid, the mask kept. Needs no data."""

from __future__ import annotations

from torch import Tensor

from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.grid import QuantizedWeight, round_to_nearest
from sqft_plugins.plugins.protocols import Statistic


class RoundToNearest:
    name = "round-to-nearest"
    statistic: Statistic = "none"

    def quantize(self, weight: Tensor, mask: Tensor, statistic: Tensor | None, grid: GridStamp) -> QuantizedWeight:
        """weight, mask [out, in] → codes on the grid; pruned weights get the code of zero."""
        return round_to_nearest(weight, mask, grid.group_size, grid.symmetric, grid.kind)
