"""Do we make the very weights of blocks that llama.cpp makes of them? Random blocks of every type, ours against ggml's
own `to_float`, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gguf_ext.blocks.codec import LAYOUTS, codes_of, dequantize, replace_codes
from gguf_ext.blocks.planes import Bytes
from gguf_ext.blocks.types import BLOCKS, TensorType
from gguf_ext.ggml import to_float

SPECIAL = (0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFFFF, 0x7F7F, 0x0101)
"""fp16 numbers, and pairs of scales in a byte: ±0, subnormal, the smallest normal, the largest, ±infinity, NaN."""
PER_SPECIAL = 16
CHUNK = 4096


@dataclass(frozen=True)
class Compared:
    """What was found of one type.

    type: its name.
    blocks, weights: compared.
    nan: weights that are NaN in both.
    different: weights whose bits differ; NaN is equal to NaN.
    lost: blocks that are not the same after their codes were taken out and put back.
    """

    type: str
    blocks: int
    weights: int
    nan: int
    different: int
    lost: int

    @property
    def ok(self) -> bool:
        return not self.different and not self.lost


def random_blocks(kind: TensorType, count: int, generator: np.random.Generator) -> Bytes:
    """uint8 [count, bytes]: every byte random, and in the first blocks all that is no code one of `SPECIAL`."""
    blocks = generator.integers(0, 256, (count, BLOCKS[kind][1]), np.uint8)
    scales = np.ones(blocks.shape[1], bool)
    for plane in LAYOUTS[kind].planes:
        scales[plane.where] = False
    pairs = np.array(SPECIAL, "<u2").view(np.uint8).reshape(-1, 2)
    places = np.flatnonzero(scales)
    for index, pair in enumerate(pairs):
        some = blocks[index * PER_SPECIAL : (index + 1) * PER_SPECIAL]
        some[:, places] = pair[places % 2]
    return blocks


def compare_with_ggml(
    kinds: Sequence[TensorType] = tuple(LAYOUTS), count: int = 100_000, seed: int = 0
) -> Iterator[Compared]:
    """Compares `count` random blocks of each type. Raises DependencyError without llama-cpp-python, GGUFError for a
    type that its ggml does not know."""
    for kind in kinds:
        generator = np.random.default_rng([seed, kind])
        blocks = random_blocks(kind, count, generator)
        nan = different = lost = 0
        for start in range(0, count, CHUNK):
            raw = blocks[start : start + CHUNK]
            ours, theirs = dequantize(raw, kind), to_float(raw, kind, *BLOCKS[kind])
            both = np.isnan(ours) & np.isnan(theirs)
            nan += int(both.sum())
            different += int(((ours.view(np.uint32) != theirs.view(np.uint32)) & ~both).sum())
            lost += int((replace_codes(raw, codes_of(raw, kind), kind) != raw).any(axis=1).sum())
        yield Compared(kind.name, count, count * BLOCKS[kind][0], nan, different, lost)
