"""Rounding onto a grid that is there already, with compensation: GPTQ (arXiv 2210.17323) of which the scales are given.

Rounding to nearest loses what an adapter has learned wherever it moves a weight by less than half a step: over codes
alone nothing changes at all. Here the error of each column is passed on to those that are not rounded yet, weighted by
the inputs' Hessian, so that the sum over a row follows the wanted weight although each of its codes cannot.

As no scale depends on the order, columns come by falling energy of their inputs (GPTQ's act-order). In their own order
the outputs of Gemma-3-270M's layers on other text were a tenth further off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sqft_plugins.compress.hessian import DAMPING, inverse_factor
from sqft_plugins.grid import Grid

BLOCK = 128
"""Columns whose compensation is collected before it is applied to the rest (the paper's lazy batches)."""


QUANTIZING = 0.05
"""Damping of the Hessian where a float model is put on a grid, a fraction of its mean diagonal. The paper's 1 % takes
chance for correlation where a layer is wide for its tokens: over 4,096 of them, the outputs of Gemma-3-270M's down
projections (2,048 inputs) on other text are 7 to 10 % nearer with 5 %, at 2 to 4 bits; layers of 640 and 1,024 inputs
differ by 1 %. Settling keeps the 1 %: over codes a larger one holds them back where they are."""


class Ordered(NamedTuple):
    """The columns, int64 [in], by falling energy of their inputs, and U of `inverse_factor` in this order."""

    order: Tensor
    factor: Tensor


def ordered_factor(hessian: Tensor, damping: float = DAMPING) -> Ordered:
    """hessian: XᵀX [in, in]. damping: of `inverse_factor`. Raises GridError for a Hessian that cannot be inverted."""
    hessian = hessian.cpu()
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    return Ordered(order, inverse_factor(hessian[order][:, order], damping))


def compensated(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    mask: Tensor | None = None,
    factor_of: Callable[[Tensor], Ordered] = ordered_factor,
) -> Tensor:
    """The codes on `grid` whose outputs are near those of `weight` → uint8 [out, in], on the device of `weight`.

    weight: [out, in], what is wanted.
    hessian: XᵀX [in, in] of its inputs.
    mask: bool [out, in], True = kept; pruned weights get the code of 0 whatever compensation has made of them, and
        their errors are passed on like any others. None for all kept.
    factor_of: `ordered_factor`, or one that remembers.

    Computed in float32. Raises GridError for a Hessian that cannot be inverted.
    """
    device = weight.device
    weight, grid = weight.float().cpu(), grid.to("cpu")
    order, factor = factor_of(hessian)
    group = grid.group_of(order, weight.shape[1])

    # as [in, out], in which a column of the weight lies in one piece: less than half of the time
    remaining = weight.t()[order].contiguous()  # compensated as we go
    pruned = None if mask is None else (~mask.cpu()).t()[order]
    codes = torch.empty(remaining.shape, dtype=torch.uint8)
    for start in range(0, len(remaining), BLOCK):
        stop = min(start + BLOCK, len(remaining))
        errors = torch.empty(stop - start, remaining.shape[1])

        for column in range(start, stop):
            own, wanted = grid.columns(group[column : column + 1]), remaining[column]
            kept = wanted if pruned is None else wanted.masked_fill(pruned[column], 0)
            code = own.quantize(kept.unsqueeze(1))  # [out, 1]
            codes[column] = code.squeeze(1)

            # the error into the columns that come later in this block
            error = (wanted - own.dequantize(code).squeeze(1)) / factor[column, column]
            remaining[column:stop].addr_(factor[column, column:stop], error, alpha=-1)
            errors[column - start] = error

        # and into those behind the block
        remaining[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return torch.empty_like(codes).index_copy_(0, order, codes).t().contiguous().to(device)
