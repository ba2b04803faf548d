"""One sparse Q4_0 tensor of a compact GGUF file: what the kernels keep in memory, as bytes.

    "SQFT", version 1 (uint32), then int64 out, in, group_size, bytes of the values; zeros up to 64 bytes
    masks, block_offsets, scales, values: as the top of sqft_plugins/kernels/layout.py has them, the scales fp16

`unpack_blocks` gives the very Q4_0 blocks back: a code of 8 is what is not kept, and scales keep their bits.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gguf_ext.blocks import TensorType, codes_of, replace_codes
from gguf_ext.blocks.types import BLOCKS
from gguf_ext.errors import DamagedFileError

if TYPE_CHECKING:
    from torch import Tensor

MAGIC, VERSION = b"SQFT", 1
HEADER = struct.Struct("<4sIqqqq24x")
WEIGHTS, BYTES = BLOCKS[TensorType.Q4_0]


class Shape(NamedTuple):
    """What stands before the parts. values: bytes of them, their padding included."""

    out: int
    columns: int
    group_size: int
    values: int

    @property
    def parts(self) -> tuple[int, int, int, int]:
        """Bytes of masks, block_offsets, scales, values."""
        from sqft_plugins.kernels.layout import ROWS, blocks_of, chunks_of

        blocks = blocks_of(self.out)
        groups = self.columns // self.group_size
        return blocks * chunks_of(self.columns) * 8, (blocks + 1) * 8, blocks * groups * ROWS * 2, self.values

    @property
    def bytes(self) -> int:
        return HEADER.size + sum(self.parts)


def shape_of(head: bytes, room: int) -> Shape | None:
    """Of the first bytes of a packed tensor in a place of `room` bytes; None where they are not one that fits there."""
    if len(head) < HEADER.size:
        return None
    magic, version, *numbers = HEADER.unpack(head[: HEADER.size])
    shape = Shape(*numbers)
    sound = magic == MAGIC and version == VERSION and min(shape) > 0 and max(shape) <= 16 * room
    if not sound or shape.columns % shape.group_size or shape.group_size % WEIGHTS or shape.bytes > room:
        return None
    return shape


def pack_blocks(blocks: NDArray[np.uint8]) -> bytes:
    """Q4_0 blocks uint8 [out, in / 32 * 18] → the packed tensor."""
    import torch

    from sqft_plugins.grid import SYMMETRIC_ZERO_POINT
    from sqft_plugins.kernels.layout import pack, to_groups
    from sqft_plugins.mask import nonzero_mask

    split = np.ascontiguousarray(blocks).reshape(blocks.shape[0], -1, BYTES)
    out, count = split.shape[:2]
    scales = np.ascontiguousarray(split[..., :2]).view(np.int16)[..., 0]  # [out, in / 32], bits: NaN stays as it is
    changes = np.flatnonzero((scales[:, 1:] != scales[:, :-1]).any(0)) + 1
    group = math.gcd(count, *map(int, changes))

    codes = torch.from_numpy(codes_of(blocks, TensorType.Q4_0))
    packed = pack(codes, nonzero_mask(codes.to(torch.int8) - SYMMETRIC_ZERO_POINT))
    grouped = to_groups(torch.from_numpy(np.ascontiguousarray(scales[:, ::group])))
    shape = Shape(out, count * WEIGHTS, group * WEIGHTS, packed.values.numel())
    parts: tuple[Tensor, ...] = (packed.masks, packed.block_offsets, grouped, packed.values)
    return HEADER.pack(MAGIC, VERSION, *shape) + b"".join(part.numpy().tobytes() for part in parts)


def unpack_blocks(data: NDArray[np.uint8], what: str) -> NDArray[np.uint8]:
    """The inverse. what: names the tensor and its file in the message of DamagedFileError."""
    import torch

    from sqft_plugins.errors import KernelError
    from sqft_plugins.kernels.layout import ROWS, Packed, blocks_of, check, from_groups, unpack

    shape = shape_of(data[: HEADER.size].tobytes(), data.size)
    if shape is None:
        raise DamagedFileError(f"{what} is damaged (no packed tensor): copy the file or make it again")
    at, found = HEADER.size, []
    for size, kind in zip(shape.parts, (np.int64, np.int64, np.int16, np.uint8), strict=True):
        found.append(torch.from_numpy(np.frombuffer(data[at : at + size].tobytes(), kind).copy()))
        at += size
    blocks = blocks_of(shape.out)
    packed = Packed(found[0].view(blocks, -1), found[3], found[1])
    try:
        check(packed, shape.out, shape.columns)
    except KernelError as error:
        raise DamagedFileError(f"{what} is damaged ({error}): copy the file or make it again") from error

    codes = unpack(packed, None, shape.out, shape.columns)[0].numpy()
    scales = from_groups(found[2].view(blocks, -1, ROWS), shape.out).numpy()
    result = np.zeros((shape.out, shape.columns // WEIGHTS, BYTES), np.uint8)
    result[..., :2] = np.repeat(scales, shape.group_size // WEIGHTS, 1)[..., None].view(np.uint8)
    return replace_codes(result.reshape(shape.out, -1), codes, TensorType.Q4_0)
