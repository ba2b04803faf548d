"""What a type of blocks is: where the codes are, and which numbers make weights of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gguf_ext.blocks.planes import Bytes, Plane

Floats = NDArray[np.float32]


class Numbers(NamedTuple):
    """The numbers of blocks that stay as they are when codes change, effective ones: a scale of scales is multiplied
    out, which is exact in float32 (11 bits of an fp16 times 8 at most).

    scale: float32 [n, groups of a block]. offset: the same, or None.
    """

    scale: Floats
    offset: Floats | None = None


@dataclass(frozen=True)
class BlockLayout:
    """One type. A weight is `(level(code) - zero_point) * scale + offset`, computed in float32 in this order; then it
    has the bits that ggml's `to_float` gives it, since the products are exact.

    planes: where the bits of a code are.
    group: weights that share a scale.
    numbers: blocks uint8 [n, bytes] → Numbers.
    zero_point: of every group; None where the levels are a table, or an offset takes its place.
    affine: whether there is an offset.
    table: the level of each code; None where a code is its own level.
    signed: whether a code of 8 bits is stored as the signed number code - 128.
    """

    planes: tuple[Plane, ...]
    group: int
    numbers: Callable[[Bytes], Numbers]
    zero_point: int | None = None
    affine: bool = False
    table: tuple[int, ...] | None = None
    signed: bool = False

    @property
    def bits(self) -> int:
        """Of a code."""
        return sum(plane.bits for plane in self.planes)


def halves(blocks: Bytes, start: int) -> Floats:
    """The fp16 at a byte of every block, float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)
