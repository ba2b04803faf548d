"""GPTQ that keeps the mask (arXiv 2210.17323; the mask as in SparseGPT, arXiv 2301.00774, section 3.3).

Columns are put on the grid from left to right; the error of each is compensated by the columns to its right, weighted
by the inputs' Hessian. A pruned weight is put to zero whatever compensation has made of it, and its error is passed on
like any other's, so the kept weights make up for it and it never moves.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import GridError
from sqft_plugins.grid import INT4, Grid, GridKind, QuantizedWeight, group_width, join_groups, make_grid
from sqft_plugins.plugins.protocols import Statistic

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a fraction of its mean (the paper's 1 %)."""
BLOCK = 128
"""Columns whose compensation is collected before it is applied to the rest (the paper's lazy batches)."""


class GPTQ:
    name = "gptq"
    statistic: Statistic = "hessian"

    def __init__(self) -> None:
        self._factor = FactorMemo()

    def quantize(self, weight: Tensor, mask: Tensor, statistic: Tensor | None, grid: GridStamp) -> QuantizedWeight:
        """weight, mask [out, in], statistic XᵀX [in, in] → codes on the grid; pruned weights get the code of zero.

        The scale of a group is made, and rounded, from the compensated weights when its first column is reached, so
        that compensation sees the real grid. Computed in float32. Raises GridError for a Hessian that cannot be
        inverted.
        """
        assert statistic is not None
        return gptq(weight, mask, self._factor(statistic), grid.group_size, grid.symmetric, grid.kind)


def inverse_factor(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """XᵀX [in, in] → U [in, in], float32, upper triangular with UᵀU = (XᵀX + damping)⁻¹.

    An input that is always zero gets a diagonal of one: its weights are rounded and compensate nothing.
    """
    damped = hessian.to(torch.float64, copy=True)
    diagonal = damped.diagonal()
    mean = float(diagonal.mean())
    diagonal += torch.where(diagonal == 0, 1.0, damping * mean)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True).to(torch.float32)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # torch documents it, and does not export it
        raise GridError(
            f"the inputs' Hessian cannot be inverted with damping={damping}: give more calibration text"
        ) from error


class FactorMemo:
    """`inverse_factor` that remembers its last result: q, k and v see the same inputs, and a driver that hands out one
    tensor for all three has it inverted once.

    The tensor is known by identity and by its count of writes in place. It is not held, and when it goes, so does its
    factor.
    """

    def __init__(self) -> None:
        self._hessian: weakref.ref[Tensor] | None = None
        self._version = 0
        self._factor: Tensor | None = None

    def __call__(self, hessian: Tensor) -> Tensor:
        """XᵀX [in, in] → U as from `inverse_factor`; callers must not write into it."""
        if hessian.is_inference():  # does not count its writes
            return inverse_factor(hessian)
        known = self._hessian is not None and self._hessian() is hessian and self._version == hessian._version
        if self._factor is None or not known:
            self._factor = None  # of another Hessian: two need not be in memory
            self._factor = inverse_factor(hessian)
            self._hessian = weakref.ref(hessian, self._forget)
            self._version = hessian._version
        return self._factor

    def _forget(self, gone: weakref.ref[Tensor]) -> None:
        self._factor = None


def gptq(
    weight: Tensor, mask: Tensor, factor: Tensor, group_size: int, symmetric: bool, kind: GridKind = INT4
) -> QuantizedWeight:
    """weight, mask [out, in], factor from `inverse_factor` → codes on a grid of `kind`, made here."""
    width = group_width(weight.shape[1], group_size)
    # as [in, out], in which a column of the weight lies in one piece: less than half of the time
    pruned = (~mask).t().contiguous()
    remaining = weight.to(torch.float32).t().masked_fill(pruned, 0).contiguous()  # compensated as we go
    grids: list[Grid] = []

    def grid_of(column: int) -> Grid:
        if column % width == 0:
            group = slice(column, column + width)
            grids.append(make_grid(remaining[group].masked_fill(pruned[group], 0).t(), -1, symmetric, kind))
        return grids[-1]

    block = max(BLOCK // width, 1) * width  # whole groups, so that a group's scale sees its updates
    codes = column_codes(remaining, pruned, factor, block, grid_of)
    return QuantizedWeight(codes.t().contiguous(), join_groups(grids))


def column_codes(
    remaining: Tensor, pruned: Tensor | None, factor: Tensor, block: int, grid_of: Callable[[int], Grid]
) -> Tensor:
    """Puts one column of a weight after the other on its grid → codes uint8 [in, out].

    remaining: float32 [in, out], which is compensated in place. pruned: bool [in, out], what is put to 0; None for
    nothing. factor: from `inverse_factor`, in the order of the columns. block: columns whose compensation is collected.
    grid_of: column → its grid [out, 1], asked when all columns before it are done.
    """
    codes = torch.empty(remaining.shape, dtype=torch.uint8)
    for start in range(0, len(remaining), block):
        stop = min(start + block, len(remaining))
        errors = torch.empty(stop - start, remaining.shape[1])

        for column in range(start, stop):
            grid, wanted = grid_of(column), remaining[column]
            kept = wanted if pruned is None else wanted.masked_fill(pruned[column], 0)
            code = grid.quantize(kept.unsqueeze(1))  # [out, 1]
            codes[column] = code.squeeze(1)

            # the error into the columns to the right in this block
            error = (wanted - grid.dequantize(code).squeeze(1)) / factor[column, column]
            remaining[column:stop].addr_(factor[column, column:stop], error, alpha=-1)
            errors[column - start] = error

        # and into those behind the block
        remaining[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return codes
