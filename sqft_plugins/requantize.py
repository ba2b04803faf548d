"""QA-SparsePEFT as pure functions: the merged weight on the base's own INT4 grid,
q' = clamp(round((W + s · (B @ A) ⊙ M) / scale) + zero_point, 0, 15) (arXiv 2410.03750, QA-SparsePEFT).

Training, evaluation and merging all make their codes here, so that they agree to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.recode import Recoded
from sqft_plugins.errors import GridError
from sqft_plugins.formula import Block, merged_blocks
from sqft_plugins.layer_grid import LayerGrid
from sqft_plugins.progress import say

FEW = 1e-3
"""A merge that changes fewer of the kept codes than this is said to have changed nothing."""


def requantized(weight: Tensor, A: Tensor, B: Tensor, scaling: float, grid: LayerGrid) -> Tensor:
    """The merge: uint8 codes [out, in] of W + s · (B @ A) ⊙ M on the given grid.

    weight: W [out, in], float. A: [r, in]. B: [out, r]. Raises GridError where an adapter holds NaN or infinity, which
    a code would hide.
    """
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for rows, merged, _ in _exact_blocks(weight, A, B, scaling, grid):
        if not bool(torch.isfinite(merged).all()):
            raise GridError("the adapter holds NaN or infinity: take an earlier checkpoint, or train at a lower rate")
        codes[rows] = grid.quantize(merged, rows)
    return codes


def fake_quantized_blocks(
    weight: Tensor, A: Tensor, B: Tensor, scaling: float, dtype: torch.dtype, grid: LayerGrid
) -> Iterator[Block]:
    """(rows, the dequantized codes of `requantized` of those rows in `dtype`, M as 0 and 1 in float32)."""
    for rows, merged, mask in _exact_blocks(weight, A, B, scaling, grid):
        yield rows, grid.dequantize(grid.quantize(merged, rows), rows, dtype), mask


def _exact_blocks(weight: Tensor, A: Tensor, B: Tensor, scaling: float, grid: LayerGrid) -> Iterator[Block]:
    """`merged_blocks` in float32 (float64 for a float64 base), the product in float64: see `masked_sum`."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    wide = exact if weight.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return merged_blocks(weight, A.to(wide), B.to(wide) * scaling, True, exact, grid)


def say_if_hardly_trained(adapter: Path, changed: float) -> None:
    """changed: the fraction of kept codes that differ."""
    if changed < FEW:
        say(f"{adapter} changes {changed:.3%} of the kept codes: it was hardly trained, or too gently")


def codes_changed(merged: Recoded, plain: ModelFolder) -> float:
    """The fraction of kept codes that differ, over the modules of an adapter. merged, plain: the folder with the
    adapter and without. All weights are kept where a module has no mask."""
    different = kept = 0
    for module, codes in merged.codes.items():
        different += int((codes != plain.quantized(module).codes).sum())
        mask = merged.mask(module)
        kept += codes.numel() if mask is None else int(mask.sum())
    return different / max(kept, 1)
