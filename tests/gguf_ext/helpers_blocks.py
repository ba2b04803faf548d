"""The layouts of all types, written out weight by weight."""

from __future__ import annotations

import numpy as np

from gguf_ext.blocks import TensorType
from gguf_ext.blocks.types import BLOCKS

T = TensorType
BITS = {T.Q4_0: 4, T.Q4_1: 4, T.Q5_0: 5, T.Q5_1: 5, T.Q8_0: 8, T.Q2_K: 2, T.Q3_K: 3, T.Q4_K: 4, T.Q5_K: 5, T.Q6_K: 6}
BITS |= {T.IQ4_NL: 4, T.IQ4_XS: 4, T.MXFP4: 4, T.NVFP4: 4}
FROZEN = {
    T.Q4_0: [(0, 2)],
    T.Q4_1: [(0, 4)],
    T.Q5_0: [(0, 2)],
    T.Q5_1: [(0, 4)],
    T.Q8_0: [(0, 2)],
    T.Q2_K: [(0, 16), (80, 84)],
    T.Q3_K: [(96, 110)],
    T.Q4_K: [(0, 16)],
    T.Q5_K: [(0, 16)],
    T.Q6_K: [(192, 210)],
    T.IQ4_NL: [(0, 2)],
    T.IQ4_XS: [(0, 8)],
    T.MXFP4: [(0, 1)],
    T.NVFP4: [(0, 4)],
}
"""The bytes of a block that are no codes, from the structs of ggml-common.h."""


def naive_code(kind: TensorType, block: list[int], i: int) -> int:
    """The code of weight `i`, as the loops of ggml's `dequantize_row_*` find it."""
    half, j, place = i // 128, i % 128 // 32, i % 32
    match kind:
        case T.Q4_0 | T.Q4_1 | T.IQ4_NL | T.MXFP4:
            return block[-16 + i % 16] >> 4 * (i // 16) & 15
        case T.Q5_0 | T.Q5_1:
            fifth = int.from_bytes(bytes(block[-20:-16]), "little") >> i & 1
            return block[-16 + i % 16] >> 4 * (i // 16) & 15 | fifth << 4
        case T.Q8_0:
            return (block[2 + i] + 128) % 256
        case T.Q2_K:
            return block[16 + 32 * half + place] >> 2 * j & 3
        case T.Q3_K:
            return block[32 + 32 * half + place] >> 2 * j & 3 | (block[place] >> i // 32 & 1) << 2
        case T.Q4_K:
            return block[16 + i // 64 * 32 + place] >> 4 * (i // 32 % 2) & 15
        case T.Q5_K:
            return block[48 + i // 64 * 32 + place] >> 4 * (i // 32 % 2) & 15 | (block[16 + place] >> i // 32 & 1) << 4
        case T.Q6_K:
            high = block[128 + 32 * half + place] >> 2 * j & 3
            return block[64 * half + i % 64] >> 4 * (i % 128 // 64) & 15 | high << 4
        case T.IQ4_XS:
            return block[8 + i // 32 * 16 + i % 16] >> 4 * (i // 16 % 2) & 15
        case T.NVFP4:
            return block[4 + i // 16 * 8 + i % 8] >> 4 * (i // 8 % 2) & 15
    raise AssertionError(kind)


def naive_codes(kind: TensorType, blocks: np.ndarray) -> np.ndarray:
    weights = BLOCKS[kind][0]
    return np.array([[naive_code(kind, block, i) for i in range(weights)] for block in blocks.tolist()], np.uint8)
