"""Rounding onto a grid that is there already, with compensation: GPTQ (arXiv 2210.17323) of which the scales are given.

Rounding to nearest loses what an adapter has learned wherever it moves a weight by less than half a step: over codes
alone nothing changes at all. Here the error of each column is passed on to those that are not rounded yet, weighted by
the inputs' Hessian, so that the sum over a row follows the wanted weight although each of its codes cannot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sqft_plugins.compress.gptq import BLOCK, column_codes, inverse_factor
from sqft_plugins.grid import Grid


def compensated(weight: Tensor, hessian: Tensor, grid: Grid, mask: Tensor | None = None) -> Tensor:
    """The codes on `grid` whose outputs are near those of `weight` → uint8 [out, in], on the device of `weight`.

    weight: [out, in], what is wanted. hessian: XᵀX [in, in] of its inputs. mask: bool [out, in], True = kept; pruned
    weights get the code of 0. Computed in float32. As no scale depends on the order, columns come by falling energy of
    their inputs (GPTQ's act-order). Raises GridError for a Hessian that cannot be inverted.
    """
    device = weight.device
    weight, hessian, grid = weight.float().cpu(), hessian.cpu(), grid.to("cpu")
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    factor = inverse_factor(hessian[order][:, order])
    group = order // (weight.shape[1] // grid.groups)  # of each column

    # as [in, out], in which a column of the weight lies in one piece
    remaining = weight.t()[order].contiguous()  # compensated as we go
    pruned = None if mask is None else (~mask.cpu()).t()[order]
    codes = column_codes(remaining, pruned, factor, BLOCK, lambda column: grid.columns(group[column : column + 1]))
    return torch.empty_like(codes).index_copy_(0, order, codes).t().contiguous().to(device)
