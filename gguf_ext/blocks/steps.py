"""Integer weights to blocks of Q4_0, Q5_0 and Q8_0 and back, bit for bit.

A weight on our grid is `scale * (code - zero_point)`, so `step = code - zero_point` and `d = scale` give the same
number, exactly, and a pruned weight (`code == zero_point`) is step 0. The gguf package's quantizers start from floats
and choose a `d` of their own. Steps are -8..7 in Q4_0, -16..15 in Q5_0, -128..127 in Q8_0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_ext.blocks.codec import LAYOUTS, codes_of
from gguf_ext.blocks.planes import Bytes, write_planes
from gguf_ext.blocks.types import BLOCK, BLOCKS, OFFSET, TensorType, row_bytes
from gguf_ext.errors import BlockSizeError


def encode(steps: NDArray[np.signedinteger[Any]], scale: NDArray[np.float16], kind: TensorType) -> Bytes:
    """steps int8 or int16 [out, in], scale fp16 [out, groups] (groups of a multiple of 32) → uint8 [out, row_bytes].

    The steps must be in the range of `kind`; `write.transcode` sees to that. Raises BlockSizeError.
    """
    rows, columns = steps.shape
    width = row_bytes(columns, kind)
    blocks = columns // BLOCK

    groups = scale.shape[1]
    if groups == 0 or blocks % groups:
        raise BlockSizeError(
            f"groups={groups} of in={columns} are no multiples of {BLOCK}: use group size 32, 64 or 128"
        )

    # one fp16 scale a block, and the codes
    out = np.empty((rows * blocks, BLOCKS[kind][1]), np.uint8)
    d = np.repeat(np.ascontiguousarray(scale, dtype="<f2"), blocks // groups, axis=1)  # [out, blocks]
    out[:, 0:2] = d.view(np.uint8).reshape(-1, 2)
    layout = LAYOUTS[kind]
    assert layout.zero_point is not None
    stored = steps if layout.signed else steps + np.int8(layout.zero_point)
    write_planes(out, stored.astype(np.uint8).reshape(-1, BLOCK), layout.planes)
    return out.reshape(rows, width)


def decode(raw: Bytes, kind: TensorType) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """The inverse of `encode`: uint8 [out, row_bytes] of Q4_0 or Q5_0 → steps int8 [out, in], d fp16 [out, in / 32]."""
    steps = codes_of(raw, kind).view(np.int8) - np.int8(OFFSET[kind])
    blocks = np.ascontiguousarray(raw).reshape(len(raw), -1, BLOCKS[kind][1])
    return steps, np.ascontiguousarray(blocks[:, :, 0:2]).view("<f2").reshape(len(raw), -1)
