"""The K-quants: 256 weights, in groups of 16 or 32 with a small integer scale each, and fp16 scales d of those.

Layouts, from ggml's `block_q2_K` and so on (ggml-common.h); `4 × (2 × 32)` means 4 chunks of 2 fields 32 apart, as in
`gguf_ext.blocks.planes`:

    Q2_K,  84 bytes: 16 of scale | minimum << 4 | 64 of 2 bits, 2 × (4 × 32) | d | dmin      d · sc · code - dmin · m
    Q3_K, 110 bytes: 32 of third bits, 1 × (8 × 32) | 64 of 2 bits as in Q2_K | 12 of scales, 6 bits | d
                                                                                             d · (sc - 32) · (code - 4)
    Q4_K, 144 bytes: d | dmin | 12 of scales and minima, 6 bits | 128 of 4 bits, 4 × (2 × 32)
    Q5_K, 176 bytes: d | dmin | 12 as in Q4_K | 32 of fifth bits, 1 × (8 × 32) | 128 as in Q4_K
                                                                                             d · sc · code - dmin · m
    Q6_K, 210 bytes: 128 of 4 bits, 2 × (2 × 64) | 64 of 2 bits, 2 × (4 × 32) | 16 signed scales | d
                                                                                             d · sc · (code - 32)
"""

from __future__ import annotations

import numpy as np

from gguf_ext.blocks.layout import BlockLayout, Numbers, halves
from gguf_ext.blocks.planes import Bytes, Plane, read_planes

Q3_SCALES = (Plane(96, bits=4, chunks=1, run=8), Plane(104, bits=2, chunks=1, run=4))
SIX_BITS = np.uint8(63)


def _q2(blocks: Bytes) -> Numbers:
    packed = blocks[:, :16]
    scale = halves(blocks, 80) * (packed & 0xF).astype(np.float32)
    return Numbers(scale, -(halves(blocks, 82) * (packed >> 4).astype(np.float32)))


def _q3(blocks: Bytes) -> Numbers:
    scales = read_planes(blocks, Q3_SCALES).astype(np.float32) - np.float32(32)
    return Numbers(halves(blocks, 108) * scales)


def _q4_and_q5(blocks: Bytes) -> Numbers:
    """Of 12 bytes a | b | c, 4 each: scales and minima of the first 4 groups are the low 6 bits of a and b; of the last
    4 the nibbles of c, with the high 2 bits of a and b above them."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([a & SIX_BITS, (c & 0xF) | (a >> 6 << 4)], axis=1)
    minima = np.concatenate([b & SIX_BITS, (c >> 4) | (b >> 6 << 4)], axis=1)
    return Numbers(halves(blocks, 0) * scales.astype(np.float32), -(halves(blocks, 2) * minima.astype(np.float32)))


def _q6(blocks: Bytes) -> Numbers:
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return Numbers(halves(blocks, 208) * scales.astype(np.float32))


def _two_bits(start: int) -> Plane:
    return Plane(start, bits=2, chunks=2, run=32)


Q2_K = BlockLayout((_two_bits(16),), 16, _q2, affine=True)
Q3_K = BlockLayout((_two_bits(32), Plane(0, bits=1, chunks=1, run=32)), 16, _q3, zero_point=4)
Q4_K = BlockLayout((Plane(16, bits=4, chunks=4, run=32),), 32, _q4_and_q5, affine=True)
Q5_K = BlockLayout(
    (Plane(48, bits=4, chunks=4, run=32), Plane(16, bits=1, chunks=1, run=32)), 32, _q4_and_q5, affine=True
)
Q6_K = BlockLayout((Plane(0, bits=4, chunks=2, run=64), _two_bits(128)), 16, _q6, zero_point=32)
