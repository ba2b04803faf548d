"""A kind of grid: which levels a code stands for, and which code is nearest to a number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sqft_plugins.errors import GridError
from sqft_plugins.grid.search import LevelSearch


@dataclass(frozen=True)
class GridKind:
    """What the grids of one name have in common; the numbers of one weight are in `Grid`.

    name: as stamps, errors and `--grid` have it, such as "int4" or "q4_k".
    bits: of a code, 1..8; codes are uint8, 0..2^bits - 1.
    levels: the level of each code, for a table; None where the level of a code is the code itself ("uniform").
    affine: whether each group has a float offset, so that 0 need not be a value.
    group_size: the columns of a group, where the kind fixes them; None for any that divide the row.

    Raises GridError for levels that are no table of `bits` bits.
    """

    name: str
    bits: int
    levels: tuple[float, ...] | None = None
    affine: bool = False
    group_size: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise GridError(f"bits={self.bits} of grid {self.name!r} do not fit a code: use 1..8")
        if self.levels is None:
            return
        if len(self.levels) != 2**self.bits:
            raise GridError(
                f"grid {self.name!r} has {len(self.levels)} levels for {self.bits} bits: give {2**self.bits}"
            )
        numbers = {level for level in self.levels if not math.isnan(level)}
        if len(numbers) < 2 or math.inf in map(abs, numbers):
            raise GridError(
                f"levels of grid {self.name!r} are {self.levels[:4]}: give at least two different finite ones"
            )

    @property
    def max_code(self) -> int:
        """2^bits - 1."""
        return int(2**self.bits - 1)

    @property
    def symmetric_zero_point(self) -> int:
        """The zero point of a symmetric grid of integers, 2^(bits - 1)."""
        return int(2 ** (self.bits - 1))

    @property
    def is_integer(self) -> bool:
        """Whether a code minus the zero point is what is multiplied by the scale: a grid of whole steps."""
        return self.levels is None and not self.affine

    @property
    def has_zero(self) -> bool:
        """Whether 0 is a value of every group, exactly: only then may a mask be kept."""
        return not self.affine and (self.levels is None or 0.0 in self.levels)

    def level(self, codes: Tensor) -> Tensor:
        """uint8 codes → a new float32 tensor of the same shape."""
        if self.levels is None:
            return codes.to(torch.float32)
        table = _table(self.name, self.levels, codes.device)
        return table.index_select(0, codes.flatten().to(torch.int32)).view(codes.shape)

    def nearest_level(self, numbers: Tensor) -> Tensor:
        """The code of the level of a table that is nearest to each number → uint8 of the same shape.

        numbers: float32 or float64. A number in the middle of two levels gets the even one of their codes, which for a
        table of floating-point numbers is IEEE's rounding half to even. A level that has two codes (0 and -0) gets the
        lower one. NaN gets some code.
        """
        assert self.levels is not None
        return _search(self.levels, numbers.dtype, numbers.device)(numbers)


@lru_cache(maxsize=64)
def _table(name: str, levels: tuple[float, ...], device: torch.device) -> Tensor:
    """name: of the kind. Tables that differ in the sign of a zero alone are equal as keys."""
    return torch.tensor(levels, dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def _search(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> LevelSearch:
    return LevelSearch.of(levels, dtype, device)
