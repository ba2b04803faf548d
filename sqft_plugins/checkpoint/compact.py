"""The compact form of a sparse INT4 weight: the mask, and the codes of the kept weights only.

A weight `w` [out, in] is stored as

    w.bitmask      u8  [out, ceil(in / 8)]   the mask, least significant bit first, 1 = kept
    w.values       u8  [bytes]               the codes of the kept weights, row by row, two a byte, low half first
    w.row_offsets  i64 [out + 1]             the byte of `values` where each row begins
    w.scales       as in the INT4 folder     [out, groups]
    w.zeros        u8  [out, ceil(groups/2)] zero points, two a byte, low half first; asymmetric only
    w.shape        i64 [2]                   (out, in)

At 50 % that is 1 + 2 bits a weight, and the scales. Nothing is lost: a pruned weight has the code of its zero point.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from sqft_plugins.checkpoint.shards import TensorSpec
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import zero_codes
from sqft_plugins.mask import pack_mask, packed_mask_shape, unpack_mask

Count = TypeVar("Count", int, Tensor)


def compact_pack(codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """codes: uint8 [out, in], 0..15; mask: bool [out, in], True = kept → bitmask, values and row_offsets, as above.

    The codes of pruned weights are dropped: the caller knows that they are the zero points.
    """
    offsets, real = _layout(mask)
    nibbles = torch.zeros(real.shape[0], dtype=torch.uint8)
    nibbles[real] = codes[mask]
    return pack_mask(mask), pack_nibbles(nibbles), offsets


def compact_unpack(
    bitmask: Tensor, values: Tensor, row_offsets: Tensor, zero_point: Tensor, in_features: int
) -> tuple[Tensor, Tensor]:
    """The inverse of `compact_pack` → codes uint8 [out, in] and mask bool [out, in].

    zero_point: uint8 [out, groups], which the pruned weights get. Raises CheckpointError where `values` or
    `row_offsets` are not those of the mask.
    """
    mask = unpack_mask(bitmask, in_features)
    if not torch.equal(_layout(mask)[0], row_offsets):
        raise CheckpointError("row_offsets are not those of the bitmask")
    return codes_of(values, mask, zero_point), mask


def codes_of(values: Tensor, mask: Tensor, zero_point: Tensor) -> Tensor:
    """uint8 codes [out, in] from the `values` of the weights that `mask` (bool [out, in]) keeps; the others get their
    zero_point, uint8 [out, groups]. Raises CheckpointError for more or fewer values than the mask keeps."""
    offsets, real = _layout(mask)
    if values.shape != (int(offsets[-1]),):
        raise CheckpointError("values are more or fewer than the bitmask keeps")
    codes = zero_codes(zero_point, mask.shape[1])
    codes[mask] = unpack_nibbles(values)[real]
    return codes


def compact_specs(
    module: str, shape: tuple[int, int], value_bytes: int, scales: TensorSpec, symmetric: bool
) -> dict[str, TensorSpec]:
    """Tensor name → dtype and shape of the parts above, of a module's weight of `shape` (out, in).

    value_bytes: the size of `values`. scales: as the INT4 folder has them.
    """
    specs = {
        "bitmask": TensorSpec(torch.uint8, packed_mask_shape(shape)),
        "values": TensorSpec(torch.uint8, (value_bytes,)),
        "row_offsets": TensorSpec(torch.int64, (shape[0] + 1,)),
        "scales": scales,
        "shape": TensorSpec(torch.int64, (2,)),
    }
    if not symmetric:
        specs["zeros"] = TensorSpec(torch.uint8, (shape[0], nibble_bytes(scales.shape[1])))
    return {f"{module}.weight.{part}": spec for part, spec in specs.items()}


def nibble_bytes(count: Count) -> Count:
    """The bytes that hold `count` codes, two a byte; of a tensor of counts, one by one."""
    return (count + 1) // 2


def pack_nibbles(nibbles: Tensor) -> Tensor:
    """uint8 [..., 2 n], 0..15 → uint8 [..., n], the first of two in the low bits."""
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`: uint8 [..., n] → uint8 [..., 2 n]."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def _layout(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The row offsets int64 [out + 1] in bytes, and bool [2 * bytes]: which half bytes hold a code (False: the last one
    of a row with an odd count)."""
    kept = mask.sum(1)  # int64 [out]
    offsets = torch.zeros(mask.shape[0] + 1, dtype=torch.int64)
    torch.cumsum(nibble_bytes(kept), 0, out=offsets[1:])
    real = torch.ones(2 * int(offsets[-1]), dtype=torch.bool)
    real[2 * offsets[1:][kept % 2 == 1] - 1] = False
    return offsets, real
