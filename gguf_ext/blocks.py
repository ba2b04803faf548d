"""Q4_0 and Q5_0: integer steps and scales to raw block bytes and back, bit for bit. Q8_0, for embeddings, is only read.

A row of a GGUF tensor is cut into blocks of 32 weights, each `d * step` with one fp16 `d`. A weight on our grid is
`scale * (code - zero_point)`, so `step = code - zero_point` and `d = scale` give the same number, exactly, and a pruned
weight (`code == zero_point`) is step 0. The gguf package's quantizers start from floats and choose a `d` of their own.

Layouts, from ggml's `block_q4_0` and `block_q5_0` (ggml-common.h):

    Q4_0, 18 bytes: d fp16 | 16 bytes, byte j = (step[j] + 8) | (step[j + 16] + 8) << 4               steps -8..7
    Q5_0, 22 bytes: d fp16 | u32, bit j = fifth bit of step[j] + 16 | 16 bytes of low nibbles as above   steps -16..15
    Q8_0, 34 bytes: d fp16 | 32 signed bytes
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from gguf_ext.errors import BlockSizeError

BLOCK = 32
"""Weights in a block."""


class TensorType(IntEnum):
    """The ggml types that this package writes and reads; the values are ggml's."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q5_0 = 6
    Q8_0 = 8
    BF16 = 30

    @property
    def is_block(self) -> bool:
        """Whether its rows are cut into blocks of 32."""
        return self in BLOCK_BYTES

    @property
    def holds_steps(self) -> bool:
        """Whether it holds INT4 weights exactly: Q4_0 and Q5_0."""
        return self in OFFSET


BLOCK_BYTES = {TensorType.Q4_0: 18, TensorType.Q5_0: 22, TensorType.Q8_0: 34}
FLOAT_BYTES = {TensorType.F32: 4, TensorType.F16: 2, TensorType.BF16: 2}
OFFSET = {TensorType.Q4_0: 8, TensorType.Q5_0: 16}
"""What is added to a step before it is stored unsigned."""


def row_bytes(columns: int, kind: TensorType) -> int:
    """Bytes of one row. Raises BlockSizeError where blocks do not fit."""
    if not kind.is_block:
        return columns * FLOAT_BYTES[kind]
    if columns % BLOCK:
        raise BlockSizeError(
            f"in={columns} is not a multiple of {BLOCK}: {kind.name} cannot hold it, keep the layer float"
        )
    return columns // BLOCK * BLOCK_BYTES[kind]


def encode(steps: NDArray[np.int8], scale: NDArray[np.float16], kind: TensorType) -> NDArray[np.uint8]:
    """steps int8 [out, in], scale fp16 [out, groups] (groups of a multiple of 32) → uint8 [out, row_bytes].

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

    # one fp16 scale a block, then the nibbles, for Q5_0 the fifth bits between
    unsigned = (steps + np.int8(OFFSET[kind])).view(np.uint8).reshape(rows, blocks, 2, BLOCK // 2)
    out = np.empty((rows, blocks, BLOCK_BYTES[kind]), np.uint8)
    d = np.repeat(np.ascontiguousarray(scale, dtype="<f2"), blocks // groups, axis=1)  # [out, blocks]
    out[:, :, 0:2] = d.view(np.uint8).reshape(rows, blocks, 2)
    low = unsigned & 0xF if kind is TensorType.Q5_0 else unsigned
    out[:, :, -16:] = low[:, :, 0] | (low[:, :, 1] << 4)
    if kind is TensorType.Q5_0:
        fifth = (unsigned >> 4).reshape(rows, blocks, BLOCK)
        out[:, :, 2:6] = np.packbits(fifth, axis=-1, bitorder="little")
    return out.reshape(rows, width)


def decode(raw: NDArray[np.uint8], kind: TensorType) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """The inverse of `encode`: uint8 [out, row_bytes] → steps int8 [out, in], d fp16 [out, in / 32]."""
    blocks, d = _blocks(raw, kind)
    nibbles = blocks[:, :, -16:]
    unsigned = np.concatenate([nibbles & 0xF, nibbles >> 4], axis=-1)  # [out, blocks, 32]
    if kind is TensorType.Q5_0:
        unsigned |= np.unpackbits(blocks[:, :, 2:6], axis=-1, bitorder="little") << 4
    steps = unsigned.view(np.int8) - np.int8(OFFSET[kind])
    return steps.reshape(len(raw), -1), d


def dequantize(raw: NDArray[np.uint8], kind: TensorType) -> NDArray[np.float32]:
    """Raw rows of any TensorType, uint8 [out, row_bytes] → float32 [out, in], as llama.cpp computes them."""
    rows = raw.shape[0]
    if kind.is_block:
        if kind is TensorType.Q8_0:
            blocks, d = _blocks(raw, kind)
            steps = np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8)
        else:
            steps, d = decode(raw, kind)
        weights = steps.reshape(rows, -1, BLOCK).astype(np.float32)
        weights *= d.astype(np.float32)[:, :, None]
        return weights.reshape(rows, -1)
    raw = np.ascontiguousarray(raw)
    if kind is TensorType.F32:
        return raw.view("<f4").astype(np.float32)
    if kind is TensorType.F16:
        return raw.view("<f2").astype(np.float32)
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)  # bf16 is the upper half of fp32


def _blocks(raw: NDArray[np.uint8], kind: TensorType) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Raw rows → the bytes of each block uint8 [out, blocks, bytes], and its d fp16 [out, blocks]."""
    blocks = np.ascontiguousarray(raw).reshape(len(raw), -1, BLOCK_BYTES[kind])
    return blocks, np.ascontiguousarray(blocks[:, :, 0:2]).view("<f2").reshape(len(raw), -1)
