"""GPTQ that keeps the mask (arXiv 2210.17323; the mask as in SparseGPT, arXiv 2301.00774, section 3.3).

The grid is made first, from the weights as they are, so that the columns are free to come in the order in which their
errors do least harm ("static groups" with act-order), and the codes still lie in the order of the weight.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.compress.compensate import QUANTIZING, compensated, ordered_factor
from sqft_plugins.compress.hessian import FactorMemo
from sqft_plugins.grid import QuantizedWeight, fit_grid
from sqft_plugins.plugins.protocols import Statistic


class GPTQ:
    name = "gptq"
    statistic: Statistic = "hessian"

    def __init__(self) -> None:
        self._factor = FactorMemo(partial(ordered_factor, damping=QUANTIZING))

    def quantize(self, weight: Tensor, mask: Tensor, statistic: Tensor | None, grid: GridStamp) -> QuantizedWeight:
        """weight, mask [out, in], statistic XᵀX [in, in] → codes on the grid; pruned weights get the code of zero.

        Computed in float32. Raises GridError for a Hessian that cannot be inverted.
        """
        assert statistic is not None
        kept = weight.masked_fill(~mask, 0)
        made = fit_grid(kept, grid.group_size, grid.symmetric, grid.kind)
        return QuantizedWeight(compensated(kept, statistic, made, mask, self._factor), made)
