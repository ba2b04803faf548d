"""IQ4_NL, IQ4_XS, MXFP4 and NVFP4: 4 bits that name an entry of a table of integers, times a scale.

Layouts, from ggml's `block_iq4_nl` and so on (ggml-common.h), nibbles in chunks as in `gguf_ext.blocks.planes`:

    IQ4_NL,  18 bytes: d fp16 | 16 of nibbles, 1 × (2 × 16)                                  d · table[code]
    IQ4_XS, 136 bytes: d fp16 | 2 of high 2 bits of scales | 4 of their low nibbles | 128 of nibbles, 8 × (2 × 16)
                                                                                             d · (sc - 32) · table[code]
    MXFP4,   17 bytes: e | 16 of nibbles, 1 × (2 × 16)                                       2^(e - 128) · table[code]
    NVFP4,   36 bytes: 4 of e4m3 | 32 of nibbles, 4 × (2 × 8)                                e4m3 / 2 · table[code]

The table of the two FP4 types is e2m1 doubled, so that it has integers, and their scales are halved. A negative zero
of e2m1, code 8, is a plain 0 here as in ggml.
"""

from __future__ import annotations

import numpy as np

from gguf_ext.blocks.layout import BlockLayout, Floats, Numbers, halves
from gguf_ext.blocks.planes import Bytes, Plane, read_planes
from gguf_ext.blocks.simple import nibbles, scale_only

NON_LINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""ggml's `kvalues_iq4nl`."""
FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""ggml's `kvalues_mxfp4`: twice e2m1."""
XS_SCALES = (Plane(4, bits=4, chunks=4, run=1), Plane(2, bits=2, chunks=2, run=1))


def _xs(blocks: Bytes) -> Numbers:
    scales = read_planes(blocks, XS_SCALES).astype(np.float32) - np.float32(32)
    return Numbers(halves(blocks, 0) * scales)


def half_e8m0() -> Floats:
    """What ggml makes of each byte of a scale of MXFP4, float32 [256]: 2^(e - 128), finite for e = 255 too."""
    return np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)


def half_e4m3() -> Floats:
    """What ggml makes of each byte of a scale of NVFP4, float32 [256]: half of e4m3, without its sign. 0x7F, which is
    no number in e4m3, is 0."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 8)
    values = np.where(exponent == 0, np.ldexp(mantissa / 1, -10), normal).astype(np.float32)
    values[0x7F] = 0
    return values


E8M0, E4M3 = half_e8m0(), half_e4m3()


def _mxfp4(blocks: Bytes) -> Numbers:
    return Numbers(E8M0[blocks[:, :1]])


def _nvfp4(blocks: Bytes) -> Numbers:
    return Numbers(E4M3[blocks[:, :4]])


IQ4_NL = BlockLayout((nibbles(2),), 32, scale_only, table=NON_LINEAR)
IQ4_XS = BlockLayout((Plane(8, bits=4, chunks=8, run=16),), 32, _xs, table=NON_LINEAR)
MXFP4 = BlockLayout((nibbles(1),), 32, _mxfp4, table=FP4)
NVFP4 = BlockLayout((Plane(4, bits=4, chunks=4, run=8),), 16, _nvfp4, table=FP4)
