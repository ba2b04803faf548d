"""The grid of one weight: the numbers that stay when an adapter is trained, and the two ways between value and code."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sqft_plugins.errors import GridError
from sqft_plugins.grid.kind import GridKind
from sqft_plugins.grid.kinds import INT4


@dataclass(frozen=True, eq=False)
class Grid:
    """The frozen numbers of one weight [out, in]: `value = (level(code) - zero_point) * scale + offset`.

    kind: what a code stands for.
    scale: float32 [out, groups], the one that multiplies a level (of a K-quant d * sc). It may be 0 or negative.
    zero_point: uint8 [out, groups]; None for 0.
    offset: float32 [out, groups] where the kind is affine; None for 0.
    column_group: int64 [in], the group of each column, where the columns of a group are not neighbours (GPTQ's
        act-order) or groups are not of one width; None for neighbours of one width.

    Raises GridError for shapes or dtypes that do not go together. Numbers are not looked at here: files of others hold
    what they hold, and `check_finite` is for who trains or merges.
    """

    kind: GridKind
    scale: Tensor
    zero_point: Tensor | None = None
    offset: Tensor | None = None
    column_group: Tensor | None = None

    def __post_init__(self) -> None:
        wanted = {"scale": torch.float32, "zero_point": torch.uint8, "offset": torch.float32}
        for name, dtype in wanted.items():
            part: Tensor | None = getattr(self, name)
            if part is not None and (part.dtype != dtype or part.dim() != 2 or part.shape != self.scale.shape):
                raise GridError(
                    f"{name} of grid {self.kind.name!r} is {part.dtype} {tuple(part.shape)}: "
                    f"give {dtype} [out, groups], {tuple(self.scale.shape)} as the scale"
                )
        if (self.offset is not None) != self.kind.affine:
            raise GridError(
                f"grid {self.kind.name!r} {'needs an' if self.kind.affine else 'has no'} offset: take another kind"
            )
        if self.zero_point is not None and self.kind.levels is not None:
            raise GridError(f"grid {self.kind.name!r} is a table and has no zero_point: leave it out")
        order = self.column_group
        if order is not None and (order.dtype != torch.int64 or order.dim() != 1):
            raise GridError(f"column_group of a grid is {order.dtype} {tuple(order.shape)}: give torch.int64 [in]")

    @property
    def device(self) -> torch.device:
        return self.scale.device

    @property
    def groups(self) -> int:
        """Of one row."""
        return self.scale.shape[1]

    @property
    def has_zero(self) -> bool:
        """Whether 0 is a value of every group, exactly: only then may a mask be kept."""
        return self.kind.has_zero

    def quantize(self, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        """The code of the nearest value → uint8 [rows, in].

        weight: [rows, in], any float dtype, the rows `rows` of the whole one. Computed in float32, of a float64 weight
        in float64. A weight in the middle of two values gets, on a uniform grid, the even one of their steps
        `code - zero_point`; on a table, the even one of their codes. Where the scale is 0 all codes are one value: it
        gets the code `zero_point`, or that of the level nearest to 0. A weight that is not finite gets some code.
        """
        grouped = self._grouped(as_exact(weight))
        scale = self._of(self.scale, rows).to(grouped.dtype)
        divisor = torch.where(scale == 0, math.inf, scale)
        if self.offset is None:
            steps = grouped / divisor
        else:
            steps = (grouped - self._of(self.offset, rows)).div_(divisor)

        if self.kind.levels is not None:
            return self.kind.nearest_level(steps).flatten(1)
        steps.round_()  # in place: training calls this often
        if self.zero_point is not None:
            steps.add_(self._of(self.zero_point, rows))
        steps.clamp_(0, self.kind.max_code)
        if steps.dtype == torch.float32:  # by int32, in its own memory: to uint8 at once takes three times as long
            steps = steps.view(torch.int32).copy_(steps)
        return steps.to(torch.uint8).flatten(1)

    def dequantize(self, codes: Tensor, rows: slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        """The values of uint8 codes [rows, in] → [rows, in], computed in float32 and rounded once to `dtype`.

        In float32 `(level - zero_point) * scale` is exact for all kinds of integers and small floats whose scales have
        at most 17 bits, so that it does not matter whether a runtime fuses the product with the sum.
        """
        values = self._grouped(self.kind.level(codes))
        if self.zero_point is not None:
            values.sub_(self._of(self.zero_point, rows))
        values.mul_(self._of(self.scale, rows))
        if self.offset is not None:
            values.add_(self._of(self.offset, rows))
        return values.flatten(1).to(dtype)

    def steps(self, codes: Tensor) -> Tensor:
        """`code - zero_point` of uint8 codes [out, in] → int8 [out, in], int16 for codes of 8 bits; 0 is an exact zero.

        Raises GridError for a grid that is not of integers.
        """
        if not self.kind.is_integer:
            raise GridError(f"grid {self.kind.name!r} has no whole steps: take one of integers, such as int4")
        if self.zero_point is None:
            return codes.to(torch.int16) if self.kind.bits == 8 else codes.view(torch.int8)
        if self.kind.bits == 8:
            return self._grouped(codes.to(torch.int16)).sub_(self._of(self.zero_point)).flatten(1)
        grouped = self._grouped(codes.view(torch.int8))  # 0..127: the same in int8
        return (grouped - self._of(self.zero_point.view(torch.int8))).flatten(1)

    def keep_same(self, codes: Tensor, base: Tensor) -> Tensor:
        """`codes` [out, in], but those of `base` wherever both have the same value: where the scale is 0, or 0 and -0
        have a code each. So an adapter that changes nothing changes no byte."""
        if self.kind.is_integer and bool((torch.isfinite(self.scale) & (self.scale != 0)).all()):
            return codes  # each code has a value of its own
        new, old = self.dequantize(codes), self.dequantize(base)
        return torch.where((new == old) | (new.isnan() & old.isnan()), base, codes)

    def take(self, rows: Tensor | slice) -> Grid:
        """The grid of some rows of the weight, or of all in another order."""
        return self._each(lambda part: part[rows])

    def group_of(self, columns: Tensor, in_features: int) -> Tensor:
        """The groups of some columns, int64 [n], of a weight [out, in_features]."""
        return columns // (in_features // self.groups) if self.column_group is None else self.column_group[columns]

    def columns(self, groups: Tensor) -> Grid:
        """The grid of one column each of some groups, int64 [n]: of a weight [out, n]."""
        return replace(self, column_group=None)._each(lambda part: part[:, groups])

    def to(self, device: torch.device | str) -> Grid:
        order = None if self.column_group is None else self.column_group.to(device)
        return replace(self._each(lambda part: part.to(device)), column_group=order)

    def equals(self, other: Grid) -> bool:
        """Whether kind and all numbers are the same; NaN is not."""
        return self.kind == other.kind and all(map(_equal, self._parts, other._parts))

    def digest(self) -> str:
        """SHA-256 over the kind's name and the frozen numbers; of "int4" without the name, as version 0.1 had it."""
        digest = hashlib.sha256(b"" if self.kind == INT4 else self.kind.name.encode())
        for part in self._parts:
            if part is not None:
                digest.update(part.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def check_finite(self, name: str) -> None:
        """Raises GridError where a number of the grid of `name`, or its largest value, is NaN or infinite."""
        levels = self.kind.levels or (self.kind.max_code,)
        largest = self.scale * max(abs(level) for level in levels if not math.isnan(level))
        for part in (largest, self.offset):
            if part is not None and not bool(torch.isfinite(part).all()):
                raise GridError(
                    f"{name} has a scale that is NaN or infinite, or values that are: the file is damaged, copy it "
                    "again, or leave the module out with exclude_modules"
                )

    @property
    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.scale, self.zero_point, self.offset, self.column_group

    def _grouped(self, weight: Tensor) -> Tensor:
        """[rows, in] → [rows, groups, group_size], or [rows, in, 1] where groups are no neighbours: `_of` fits both."""
        return weight.unflatten(1, (self.groups, -1)) if self.column_group is None else weight.unsqueeze(-1)

    def _of(self, part: Tensor, rows: slice = slice(None)) -> Tensor:
        """The numbers of some rows beside their weights: [rows, groups, 1], or [rows, in, 1]."""
        own = part[rows]
        return (own if self.column_group is None else own.index_select(1, self.column_group)).unsqueeze(-1)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Grid:
        """This grid with other [out, groups]."""
        zero_point, offset = (None if part is None else change(part) for part in (self.zero_point, self.offset))
        return Grid(self.kind, change(self.scale), zero_point, offset, self.column_group)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def as_exact(weight: Tensor) -> Tensor:
    """`weight` in float32, which holds every narrower dtype; float64 stays."""
    return weight if weight.dtype == torch.float64 else weight.to(torch.float32)
