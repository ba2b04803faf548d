"""Making the scales of a uniform grid.

Scales are rounded when they are made: 8 significant bits, at least 2^-17 and at most 65504. Such a number is exact in
bf16 (8 significant bits), in fp16 (its subnormals have a spacing of 2^-24, so 2^-17 still has 8 bits) and in fp32, so
every surface reads the same one. `(code - zero_point) * scale` needs 8 + 8 bits at most: exact in fp32, rounded in
bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sqft_plugins.errors import GridError
from sqft_plugins.grid.frozen import Grid, as_exact
from sqft_plugins.grid.groups import group_width
from sqft_plugins.grid.kind import GridKind
from sqft_plugins.grid.kinds import INT4

MIN_SCALE = 2.0**-17
MAX_SCALE = 65504.0
SCALE_BITS = 8
SHARES = tuple(1 - step / 20 for step in range(1, 11))
"""Of the range of a group, down to half of it: the grids that `fit_grid` tries beside the whole."""


def round_scale(scale: Tensor) -> Tensor:
    """Rounds to 8 significant bits, half to even, and lifts to at least 2^-17 → float32, same shape.

    Raises GridError for a scale that is not finite or above 65504, where fp16 ends.
    """
    mantissa, exponent = torch.frexp(scale.to(torch.float64).abs())  # mantissa in [0.5, 1)
    rounded = torch.ldexp(torch.round(mantissa * 2**SCALE_BITS), exponent - SCALE_BITS)
    rounded = rounded.clamp(min=MIN_SCALE)
    if not bool((rounded <= MAX_SCALE).all()):  # also catches NaN
        raise GridError(
            f"scale={float(rounded.max()):g} is outside the exact range 2^-17..65504: rescale the weight or exclude it"
        )
    return rounded.to(torch.float32)


def symmetric_zero_point(scale: Tensor, kind: GridKind = INT4) -> Tensor:
    """The zero point of a symmetric grid, 2^(bits - 1) everywhere: uint8 of the shape of `scale`, on its device."""
    return torch.full_like(scale, kind.symmetric_zero_point, dtype=torch.uint8)


def make_grid(
    weight: Tensor, group_size: int = 32, symmetric: bool = True, kind: GridKind = INT4, share: float = 1.0
) -> Grid:
    """The uniform grid that covers `weight` [out, in], any float dtype, or `share` of the range of each of its groups.

    Symmetric: zero_point 2^(bits - 1) and scale = max|w| / (zero_point - 1), so that no weight is clipped. (For INT4,
    max|w| / 7.5 uses the lowest code too and has a little less squared error, but clips the largest weights, which
    costs more: docs/reference/formats.md.) Asymmetric: the range always contains 0, so that a pruned weight stays
    exactly representable. Raises GridError for a weight that is not finite, and a scale above 65504.
    """
    groups = as_exact(weight).unflatten(1, (-1, group_width(weight.shape[1], group_size)))  # [out, groups, group_size]
    if not bool(torch.isfinite(groups).all()):
        raise GridError(
            "weight holds NaN or infinity: find the broken tensor with `sqft inspect`, or exclude the layer"
        )
    if symmetric:
        scale = round_scale(groups.abs().amax(-1) * share / (kind.symmetric_zero_point - 1))
        return Grid(kind, scale, symmetric_zero_point(scale, kind))

    low = groups.amin(-1).clamp(max=0) * share
    high = groups.amax(-1).clamp(min=0) * share
    scale = round_scale((high - low) / kind.max_code)
    return Grid(kind, scale, torch.round(-low / scale).clamp(0, kind.max_code).to(torch.uint8))


def fit_grid(weight: Tensor, group_size: int = 32, symmetric: bool = True, kind: GridKind = INT4) -> Grid:
    """As `make_grid`, but of each group the share of its range (`SHARES`) by which its nearest codes have the least
    squared error. For weights whose errors are compensated: rounded to nearest, the largest are missed (`make_grid`).
    Raises GridError as `make_grid` does."""
    exact = as_exact(weight)
    found = make_grid(exact, group_size, symmetric, kind)
    least = _squared_error(found, exact)
    for share in SHARES:
        grid = make_grid(exact, group_size, symmetric, kind, share)
        error = _squared_error(grid, exact)
        better, least = error < least, torch.minimum(error, least)
        assert grid.zero_point is not None
        assert found.zero_point is not None
        scale = torch.where(better, grid.scale, found.scale)
        found = Grid(kind, scale, torch.where(better, grid.zero_point, found.zero_point))
    return found


def _squared_error(grid: Grid, weight: Tensor) -> Tensor:
    """[out, groups], of the nearest codes."""
    error = grid.dequantize(grid.quantize(weight)) - weight
    return error.unflatten(1, (grid.groups, -1)).square().sum(-1)


def make_scale(weight: Tensor, group_size: int = 32, symmetric: bool = True) -> tuple[Tensor, Tensor]:
    """`make_grid` of INT4 → scale float32, zero_point uint8, both [out, groups]."""
    grid = make_grid(weight, group_size, symmetric)
    assert grid.zero_point is not None
    return grid.scale, grid.zero_point
