"""What changes of the codes of a weight, in few bytes: a bit for each weight, and the new codes where it is 1."""

from __future__ import annotations

import torch
from torch import Tensor

from sqft_plugins.errors import GridError
from sqft_plugins.grid.packing import join_numbers, part_numbers

NIBBLE = 4
"""Bits of a code up to which two of them share a byte."""


def make_patch(base: Tensor, codes: Tensor, bits: int) -> Tensor:
    """uint8 [bytes]: how `codes` differ from `base`, both uint8 [out, in], codes of `bits` bits.

    First the bits, eight weights a byte, the first in the lowest bit; then the new codes, row by row, two a byte where
    they have at most 4 bits, the first in the lower half. 10 % of 4-bit codes come to 1.4 bits a weight.
    """
    changed = (codes != base).flatten()
    return torch.cat([join_numbers(changed, 1), join_numbers(codes.flatten()[changed], _width(bits))])


def apply_patch(base: Tensor, patch: Tensor, bits: int) -> Tensor:
    """The `codes` of `make_patch`, uint8 [out, in]. Raises GridError for the patch of another weight."""
    front = -(-base.numel() // 8)
    changed = part_numbers(patch[:front], 1)[: base.numel()].bool()
    count, width = int(changed.sum()), _width(bits)
    if len(patch) != front + -(-count * width // 8):
        raise GridError(
            f"a patch of {len(patch)} bytes is not one of a weight {tuple(base.shape)}: load the adapter on its base"
        )
    codes = base.flatten().clone()
    codes[changed] = part_numbers(patch[front:], width)[:count]
    return codes.view(base.shape)


def _width(bits: int) -> int:
    return NIBBLE if bits <= NIBBLE else 8
