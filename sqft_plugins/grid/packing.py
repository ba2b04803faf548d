"""Codes in int32 words, as compressed-tensors' `pack-quantized` has them."""

from __future__ import annotations

import torch
from torch import Tensor

from sqft_plugins.errors import GridError
from sqft_plugins.grid.kinds import BITS, MAX_CODE, SYMMETRIC_ZERO_POINT


def packed_words(count: int) -> int:
    """The int32 words that hold `count` codes, eight a word."""
    return -(-count // 8)


def pack(codes: Tensor) -> Tensor:
    """uint8 codes [out, in] → int32 [out, ceil(in / 8)], eight codes a word, the first in the lowest bits.

    This is the layout of compressed-tensors' `pack-quantized`, packed by that library.
    """
    if codes.numel() and int(codes.max()) > MAX_CODE:
        raise GridError(f"code={int(codes.max())} is not an INT4 code: use 0..15")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32  # slow: brings transformers

    return pack_to_int32(codes.to(torch.int8) - SYMMETRIC_ZERO_POINT, BITS)


def unpack(packed: Tensor, in_features: int) -> Tensor:
    """The inverse of `pack`: int32 [out, ceil(in / 8)] → uint8 codes [out, in].

    Not by the library: reading a folder would wait seconds for transformers.
    """
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32, device=packed.device)
    codes = (packed.unsqueeze(-1) >> shifts) & MAX_CODE  # [out, words, 8]
    return codes.to(torch.uint8).flatten(1)[:, :in_features].contiguous()


def pack_zero_point(zero_point: Tensor) -> Tensor:
    """uint8 [out, groups] → int32 [ceil(out / 8), groups], packed along `out` as compressed-tensors does."""
    return pack(zero_point.t().contiguous()).t().contiguous()


def unpack_zero_point(packed: Tensor, out_features: int) -> Tensor:
    """The inverse of `pack_zero_point`: int32 [ceil(out / 8), groups] → uint8 [out, groups]."""
    return unpack(packed.t().contiguous(), out_features).t().contiguous()
