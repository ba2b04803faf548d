"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: 32 weights, one fp16 scale d, for the `_1` types an fp16 minimum m.

Layouts, from ggml's `block_q4_0` and so on (ggml-common.h):

    Q4_0, 18 bytes: d | 16 bytes, byte j = code[j] | code[j + 16] << 4                         d · (code - 8)
    Q4_1, 20 bytes: d | m | 16 bytes as above                                                  d · code + m
    Q5_0, 22 bytes: d | u32, bit j = fifth bit of code[j] | 16 bytes of low nibbles as above   d · (code - 16)
    Q5_1, 24 bytes: d | m | u32 | 16 bytes as in Q5_0                                          d · code + m
    Q8_0, 34 bytes: d | 32 signed bytes, byte j = code[j] - 128                                d · (code - 128)
"""

from __future__ import annotations

from gguf_ext.blocks.layout import BlockLayout, Numbers, halves
from gguf_ext.blocks.planes import Bytes, Plane


def scale_only(blocks: Bytes) -> Numbers:
    return Numbers(halves(blocks, 0))


def scale_and_minimum(blocks: Bytes) -> Numbers:
    return Numbers(halves(blocks, 0), halves(blocks, 2))


def nibbles(start: int) -> Plane:
    return Plane(start, bits=4, chunks=1, run=16)


def fifth_bits(start: int) -> Plane:
    return Plane(start, bits=1, chunks=4, run=1)


Q4_0 = BlockLayout((nibbles(2),), 32, scale_only, zero_point=8)
Q4_1 = BlockLayout((nibbles(4),), 32, scale_and_minimum, affine=True)
Q5_0 = BlockLayout((nibbles(6), fifth_bits(2)), 32, scale_only, zero_point=16)
Q5_1 = BlockLayout((nibbles(8), fifth_bits(4)), 32, scale_and_minimum, affine=True)
Q8_0 = BlockLayout((Plane(2, bits=8, chunks=1, run=32),), 32, scale_only, zero_point=128, signed=True)
