"""What must hold of every kind of grid, tried on random numbers: `python -m sqft_plugins.grid`."""

from __future__ import annotations

import torch
from torch import Tensor

from sqft_plugins.grid.frozen import Grid
from sqft_plugins.grid.kind import GridKind

ROWS, GROUPS = 64, 8


def what_fails(kind: GridKind, seed: int = 0) -> str | None:
    """None where a value gets a code of that value, all codes of a group tried with scales of fp16 of both signs and 0;
    where zero points are steps of 0; and where what says that it has a 0 gives 0 the value 0."""
    grid, codes = random_weight(kind, seed)
    values = grid.dequantize(codes)
    again = grid.dequantize(grid.quantize(values))
    if not torch.equal(again, values):
        return f"{int((again != values).sum())} of {values.numel()} values are rounded to another value"
    if kind.has_zero and bool(grid.dequantize(grid.quantize(torch.zeros_like(values))).any()):
        return "0 is not a value of every group"
    if not torch.equal(grid.keep_same(grid.quantize(values), codes), codes):
        return "a merge of nothing changes codes"
    return None


def random_weight(kind: GridKind, seed: int = 0) -> tuple[Grid, Tensor]:
    """A grid of the kind with random numbers, as files of others may hold them, and uint8 codes [64, in] that have each
    number in each group."""
    generator = torch.Generator().manual_seed(seed)
    width = kind.group_size or 32
    groups = GROUPS * -(-(kind.max_code + 1) // (GROUPS * width))

    def fp16(spread: float) -> Tensor:
        return (torch.randn(ROWS, groups, generator=generator) * spread).half().float()

    scale = fp16(0.1)
    scale[0] = 0
    zero_point = torch.randint(0, kind.max_code + 1, (ROWS, groups), generator=generator).to(torch.uint8)
    grid = Grid(kind, scale, zero_point if kind.is_integer else None, fp16(1.0) if kind.affine else None)

    numbers = [code for code, level in enumerate(kind.level(_all(kind)).tolist()) if level == level]  # not NaN
    drawn = torch.randint(0, len(numbers), (ROWS, groups * width), generator=generator)
    drawn[:, : len(numbers)] = torch.arange(len(numbers))
    return grid, torch.tensor(numbers, dtype=torch.uint8)[drawn]


def _all(kind: GridKind) -> Tensor:
    return torch.arange(kind.max_code + 1, dtype=torch.uint8)
