"""Rounding onto a grid that is there already, with compensation: GPTQ (arXiv 2210.17323) of which the scales are given.

Rounding to nearest loses what an adapter has learned wherever it moves a weight by less than half a step: over codes
alone nothing changes at all. Here the error of each column is passed on to those that are not rounded yet, weighted by
the inputs' Hessian, so that the sum over a row follows the wanted weight although each of its codes cannot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sqft_plugins.compress.gptq import BLOCK, inverse_factor
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
    codes = torch.empty(remaining.shape, dtype=torch.uint8)
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        errors = torch.empty(stop - start, len(weight))

        for column in range(start, stop):
            wanted = remaining[column]
            kept = wanted if pruned is None else wanted.masked_fill(pruned[column], 0)
            own = grid.columns(group[column : column + 1])
            code = own.quantize(kept.unsqueeze(1))  # [out, 1]
            codes[column] = code.squeeze(1)

            error = (wanted - own.dequantize(code).squeeze(1)) / factor[column, column]
            remaining[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
            errors[column - start] = error

        remaining[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return torch.empty_like(codes).index_copy_(0, order, codes).t().contiguous().to(device)
