"""The one formula of SparsePEFT: W' = W + s · (B @ A) ⊙ M (arXiv 2410.03750, equation 2).

W, M: [out, in]. A: [r, in]. B: [out, r]. s: the scaling alpha / r_max. Training, evaluation, merging and the codes of
QA-SparsePEFT all call `masked_sum`; they differ in the dtypes, which its docstring explains.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sqft_plugins.layer_grid import LayerGrid
from sqft_plugins.mask import numeric_mask

BLOCK = 2**20
"""Weights in one block, 4 MiB in float32. Blocks of 2^17 fit a core's cache, but each goes over the gradient of x once
more: they took 1.2 to 1.4 times as long (512 tokens, 640x2048 to 4096x4096)."""

Block = tuple[slice, Tensor, Tensor | None]
"""(rows, W' of those rows, M of those rows as 0 and 1 or None where it is all ones)."""


def masked_sum(
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float | None,
    mask: Tensor | None,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """W + s · (B @ A) ⊙ M → [rows, in] in `dtype`.

    The product has the dtype of A and B and is rounded once to `dtype`, in which it is masked and added:

    | for                    | product  | sum      | because                                                          |
    | training (float)       | x's      | x's      | the GEMM with x rounds W' to that dtype anyway                   |
    | evaluation, merge      | float32  | float32  | in a bf16 sum a delta below 2^-9 of the weight would be lost     |
    | codes (training too)   | float64  | float32  | a code changes where the sum crosses half a step, so its last    |
    |                        |          |          | bit counts: a float64 product does not depend on the blocks, the |
    |                        |          |          | threads, TF32 or the device                                      |
    | delta alone            | A's      | A's      | PEFT adds it to the weight itself                                |

    weight: W [rows, in]; None for the delta alone.
    A: [r, in]. B: [rows, r], the same dtype.
    scaling: s, a tensor after `prepare_model_for_compiled_hotswap`; None where B is scaled already (once for all
    blocks).
    mask: bool, or 0 and 1 in `dtype` (`numeric_mask`), which is faster on a CPU; None for all ones.
    out: memory for the product, [rows, in] in its dtype.
    """
    delta = torch.mm(B, A, out=out)
    if scaling is not None:
        delta.mul_(scaling)
    delta = delta.to(dtype)

    if mask is not None and mask.dtype != torch.bool:
        return delta.mul_(mask) if weight is None else torch.addcmul(weight, delta, mask, out=delta)
    if mask is not None:
        delta.masked_fill_(~mask, 0)  # also where the adapter is infinite
    return delta if weight is None else delta.add_(weight)


def merged_blocks(
    weight: Tensor,
    A: Tensor,
    scaled_B: Tensor,
    sparse: bool,
    dtype: torch.dtype,
    grid: LayerGrid | None = None,
) -> Iterator[Block]:
    """W' block of rows by block of rows, in `dtype`; the tensors of a block are reused by the next one.

    weight: W [out, in], any float dtype.
    A: [r, in]. scaled_B: s · B [out, r], the same dtype.
    sparse: False leaves M out.
    grid: whose mask is M, all ones where it is `dense`; None takes the nonzero pattern of W. A base of dequantized
    codes in bf16 or fp16, where they are rounded, is put back on its grid first.
    """
    blocks = block_rows(weight)
    product_space, mask_space = (
        torch.empty(blocks[0].stop, weight.shape[1], dtype=kind, device=weight.device) for kind in (A.dtype, dtype)
    )

    for rows in blocks:
        block = weight[rows].to(dtype)
        if grid is not None and grid.on_grid and weight.dtype != dtype:
            block = grid.dequantize(grid.quantize(block, rows) if grid.codes is None else grid.codes[rows], rows)

        stored = None if grid is None else grid.mask
        mask = None
        if sparse and not (grid is not None and grid.dense):
            mask = mask_space[: len(block)]
            if stored is None:
                numeric_mask(block, out=mask)
            else:
                mask.copy_(stored[rows])

        out = product_space[: len(block)]
        yield rows, masked_sum(block, A, scaled_B[rows], None, mask, dtype, out), mask


def block_rows(weight: Tensor) -> list[slice]:
    """The rows of `weight` [out, in] block by block on a CPU, all at once elsewhere."""
    size, width = weight.shape
    step = max(BLOCK // width, 64) if weight.device.type == "cpu" else size
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
