"""The mathematics of QA-SparsePEFT as pure functions: the merged weight on the base's own INT4 grid,
q' = clamp(round((W + s · (B @ A) ⊙ M) / scale) + zero_point, 0, 15) (arXiv 2410.03750, QA-SparsePEFT).

Training, evaluation and merging all make their codes here, so that they agree to the bit. W, M: [out, in]. A: [r, in].
B: [out, r]. s: the scaling alpha / r_max. scale, zero_point: [out, groups], as in `sqft_plugins.grid`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sqft_plugins.errors import GridError
from sqft_plugins.grid import dequantize, quantize
from sqft_plugins.mask import numeric_mask

BLOCK = 2**20
"""Weights in one block, 4 MiB in float32. Blocks of 2^17 fit a core's cache, but each goes over the gradient of x once
more: they took 1.2 to 1.4 times as long (512 tokens, 640x2048 to 4096x4096)."""


def block_rows(weight: Tensor) -> list[slice]:
    """The rows of `weight` [out, in] block by block on a CPU, all at once elsewhere."""
    size, width = weight.shape
    step = max(BLOCK // width, 64) if weight.device.type == "cpu" else size
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def requantized(
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    mask: Tensor | None,
    scale: Tensor,
    zero_point: Tensor,
    on_grid: bool = False,
) -> Tensor:
    """The merge: uint8 codes [out, in] of W + s · (B @ A) ⊙ M on the given grid.

    mask: bool [out, in], None for W's nonzero pattern. on_grid: W holds dequantized codes. Raises GridError where an
    adapter holds NaN or infinity, which a code would hide.
    """
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for rows, exact, _ in _exact_blocks(weight, A, B, scaling, mask, scale, zero_point, on_grid):
        if not bool(torch.isfinite(exact).all()):
            raise GridError("the adapter holds NaN or infinity: take an earlier checkpoint, or train at a lower rate")
        codes[rows] = quantize(exact, scale[rows], zero_point[rows])
    return codes


def fake_quantized_blocks(
    dtype: torch.dtype,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    mask: Tensor | None,
    scale: Tensor,
    zero_point: Tensor,
    on_grid: bool,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, the dequantized codes of `requantized` of those rows in `dtype`, M as 0 and 1)."""
    for rows, exact, kept in _exact_blocks(weight, A, B, scaling, mask, scale, zero_point, on_grid):
        grid = scale[rows], zero_point[rows]
        yield rows, dequantize(quantize(exact, *grid), *grid, dtype), kept


def _exact_blocks(
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    mask: Tensor | None,
    scale: Tensor,
    zero_point: Tensor,
    on_grid: bool,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, W + s · (B @ A) ⊙ M of those rows in float32, M as 0 and 1); the tensors are reused by the next block.

    A code changes where the sum crosses half a step, so its last bit counts. B @ A is therefore summed in float64 and
    rounded once: the codes do not depend on the blocks, the threads, TF32 or the device. For the same reason a base of
    dequantized codes in bf16 or fp16, where they are rounded, is put back on its grid first.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    wide = exact if weight.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    A, scaled_B = A.to(wide), B.to(wide) * scaling
    for rows in block_rows(weight):
        block = weight[rows].to(exact)
        if on_grid and weight.dtype != exact:
            grid = scale[rows], zero_point[rows]
            block = dequantize(quantize(block, *grid), *grid)
        kept = numeric_mask(block) if mask is None else mask[rows].to(exact)
        yield rows, torch.addcmul(block, torch.mm(scaled_B[rows], A).to(exact), kept), kept
