"""The codes at kept places, in bytes: what a plane holds of one weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sqft_plugins.checkpoint.compact import codes_of, compact_pack
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import BITS, join_numbers, part_numbers, zero_codes


def pack_kept(codes: Tensor, mask: Tensor, bits: int) -> Tensor:
    """uint8 [bytes]: the codes, uint8 [out, in] of `bits` bits, that the mask (bool [out, in], True = kept) keeps.

    Of 4 bits it is `values` of the compact form, in which each row begins on a byte. Of other widths the codes stand
    one after the other, row by row, each in the least of 2, 4 and 8 bits that hold it, the first in the lowest.
    """
    return compact_pack(codes, mask)[1] if bits == BITS else join_numbers(codes[mask], _width(bits))


def unpack_kept(values: Tensor, mask: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_kept` → uint8 [out, in], in which what is not kept has its zero_point, uint8 [out, groups].
    Raises CheckpointError for more or fewer values than the mask keeps."""
    if bits == BITS:
        return codes_of(values, mask, zero_point)
    count, width = int(torch.count_nonzero(mask)), _width(bits)
    if values.shape != (math.ceil(count * width / 8),):
        raise CheckpointError("values are more or fewer than the mask keeps")
    codes = zero_codes(zero_point, mask.shape[1])
    codes[mask] = part_numbers(values, width)[:count]
    return codes


def _width(bits: int) -> int:
    return next(width for width in (2, 4, 8) if bits <= width)
