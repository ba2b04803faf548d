"""How codes lie in the bytes of a block: in planes, of which each holds some bits of every code.

ggml fills a byte with the same bits of weights that lie `run` apart, so that a vector instruction takes one field of
`run` bytes at once. Seen as arrays, and this is all there is to the layouts of all types:

    bytes  [chunks, run]             fields = 8 / bits of them in a byte, the first in its lowest bits
    codes  [chunks, fields, run]
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Plane(NamedTuple):
    """Some bits of every code of a block.

    start: the first byte, from the start of the block.
    bits: of each code, 1, 2, 4 or 8.
    chunks, run: as above; chunks · run bytes.
    """

    start: int
    bits: int
    chunks: int
    run: int

    @property
    def where(self) -> slice:
        """The bytes of the plane in a block."""
        return slice(self.start, self.start + self.chunks * self.run)

    def read(self, blocks: Bytes) -> Bytes:
        """Blocks uint8 [n, bytes] → the bits of each code, uint8 [n, weights], as a number below 2^bits."""
        held = blocks[:, self.where].reshape(-1, self.chunks, 1, self.run)
        if self.bits == 8:
            return held.reshape(len(blocks), -1)
        fields = held >> self._shifts()
        fields &= np.uint8(2**self.bits - 1)
        return fields.reshape(len(blocks), -1)

    def write(self, blocks: Bytes, values: Bytes) -> None:
        """The inverse: puts values, uint8 [n, weights] below 2^bits, into the bytes of the plane."""
        fields = values.reshape(-1, self.chunks, 8 // self.bits, self.run)
        held = fields[:, :, 0].copy()
        for place in range(1, 8 // self.bits):
            held |= fields[:, :, place] << np.uint8(place * self.bits)
        blocks[:, self.where] = held.reshape(len(blocks), -1)

    def _shifts(self) -> Bytes:
        return np.arange(0, 8, self.bits, dtype=np.uint8).reshape(1, -1, 1)


def read_planes(blocks: Bytes, planes: tuple[Plane, ...]) -> Bytes:
    """Blocks uint8 [n, bytes] → codes uint8 [n, weights]; the first plane has the lowest bits."""
    codes, position = planes[0].read(blocks), planes[0].bits
    for plane in planes[1:]:
        codes |= plane.read(blocks) << np.uint8(position)
        position += plane.bits
    return codes


def write_planes(blocks: Bytes, codes: Bytes, planes: tuple[Plane, ...]) -> None:
    """The inverse of `read_planes`: no other byte of the blocks is written to."""
    position = 0
    for plane in planes:
        mask = np.uint8(2**plane.bits - 1)
        plane.write(blocks, (codes >> np.uint8(position)) & mask)
        position += plane.bits
