"""Packed weights for the tests of the kernels, what they must compute, and how far off they may be."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sqft_plugins.kernels import SparseInt4Weight

SEGMENT = 128
"""Inputs that share one fixed-point scale, within a group: csrc/kernel.h."""
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half the spacing of numbers just above 1: what the one rounding to the dtype of x costs, relatively."""


class Case(NamedTuple):
    """A packed weight, its codes uint8 [out, in], and its exact values float64 [out, in]."""

    packed: SparseInt4Weight
    codes: Tensor
    exact: Tensor
    mask: Tensor
    scale: Tensor
    zero_point: Tensor


@cache
def make_case(
    out: int, in_features: int, group_size: int, density: float, symmetric: bool = True, seed: int = 0
) -> Case:
    """Random; one row and one whole block of 16 rows are pruned where there are enough; scales go from 2^-17 to 2^4."""
    generator = torch.Generator().manual_seed(seed)
    groups = in_features // group_size
    mask = torch.rand(out, in_features, generator=generator) < density
    mask[out // 2] = False
    if out >= 48:
        mask[16:32] = False
    scale = torch.ldexp(
        torch.randint(128, 256, (out, groups), generator=generator).float(),
        torch.randint(-24, -3, (out, groups), generator=generator),
    )
    zero_point = torch.full((out, groups), 8, dtype=torch.uint8)
    if not symmetric:
        zero_point = torch.randint(0, 16, (out, groups), generator=generator, dtype=torch.uint8)
    wide = zero_point.repeat_interleave(group_size, 1)
    codes = torch.randint(0, 16, (out, in_features), generator=generator, dtype=torch.uint8)
    codes = torch.where(mask, codes, wide)
    exact = (codes.double() - wide.double()) * scale.double().repeat_interleave(group_size, 1)
    packed = SparseInt4Weight.from_codes(codes, scale, zero_point, mask)
    return Case(packed, codes, exact, mask, scale, zero_point)


def make_x(tokens: int, in_features: int, dtype: torch.dtype, outlier: bool = False, seed: int = 0) -> Tensor:
    """[tokens, in], normal; outlier: one activation of each token is 100 times as large as the rest."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, in_features, generator=generator)
    if outlier:
        x[:, in_features // 3] = 100
    return x.to(dtype)


def error_bound(case: Case, x: Tensor, bias: Tensor | None, bits: int = 16) -> Tensor:
    """The bound that csrc/kernel.h states → float64 [tokens, out]: fixed point, sums in float32, one last rounding."""
    wide, weight = x.double(), case.exact.abs()
    group = case.packed.group_size
    largest = 32639 if bits == 16 else 127
    steps = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64)
    segments = 0
    for first in range(0, x.shape[1], group):
        for start in range(first, first + group, SEGMENT):
            part = slice(start, min(start + SEGMENT, first + group))
            step = wide[:, part].abs().amax(1).clamp(min=largest * 2.0**-100) / largest  # [tokens]
            steps += step[:, None] * weight[:, part].sum(1)
            segments += 1
    bound = 0.51 * steps + (segments + 4) * 2.0**-23 * (wide.abs() @ weight.t() + steps)
    result = wide @ case.exact.t()
    if bias is not None:
        result = result + bias.double()
        bound += 2.0**-23 * bias.double().abs()
    return bound + ROUNDING[x.dtype] * (result.abs() + bound) + 2.0**-24 * (x.dtype == torch.float16) + 2.0**-100
