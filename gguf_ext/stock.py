"""The bytes of the stock file that a compact one stands for, from any place on, without that file.

A compact file has the header of the stock file, but for three differences: the entries `sqft.compact.*` stand first,
`general.architecture` is `sqft-compact`, which every other reader refuses as an architecture that it does not know, and
a packed tensor (packed.py) is a row of I8. So the stock header follows from it, and the place of every tensor.
"""

from __future__ import annotations

import bisect
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_ext.errors import GGUFError
from gguf_ext.header import ARCHITECTURE, COMPACT, I8, NUMBERS, Part, TensorInfo
from gguf_ext.parts import aligned
from gguf_ext.reader import GGUFFile


def text_bytes(text: str) -> bytes:
    """A string of a GGUF header."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry_bytes(key: str, value: str | int, kind: str) -> bytes:
    """One entry of a header. kind: "string", "uint32" or "uint64"."""
    data = text_bytes(value) if isinstance(value, str) else struct.pack({"uint32": "<I", "uint64": "<Q"}[kind], value)
    return text_bytes(key) + struct.pack("<I", NUMBERS[kind]) + data


def table_entry(name: str, dimensions: tuple[int, ...], kind: int, offset: int) -> bytes:
    """One tensor in the table of a header. dimensions: the innermost first."""
    sizes = struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
    return text_bytes(name) + sizes


class StockFile:
    """path: of a compact file. size: bytes of the stock file. Raises GGUFError for a file that is not compact, what
    GGUFFile raises."""

    def __init__(self, path: str | Path):
        self.file = GGUFFile(path)
        part = self.file.parts[0]
        if not part.compact:
            raise GGUFError(f"{path} is not compact: make it so with `sqft export gguf FILE --compact`")
        self.size, self.sha256 = int(part.compact["bytes"]), str(part.compact["sha256"])
        self._infos = list(self.file.tensors.values())
        self.header = self._header(part)
        self._starts = [len(self.header) + offset for offset in self._offsets]
        self._last: tuple[int, NDArray[np.uint8]] = (-1, np.empty(0, np.uint8))

    def read(self, at: int, size: int) -> bytes:
        """Up to `size` bytes from `at` on; fewer at the end of the file alone."""
        size = max(0, min(size, self.size - at))
        pieces, end = [], at + size
        while at < end:
            piece = self._piece(at, end)
            pieces.append(piece)
            at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, at: int, end: int) -> bytes:
        """What one tensor, or what stands between two, has of it."""
        if at < len(self.header):
            return self.header[at:end]
        number = bisect.bisect_right(self._starts, at) - 1
        inside = at - self._starts[number]
        if inside < self._sizes[number]:
            if number != self._last[0]:  # one tensor is kept: it is asked for piece by piece
                self._last = number, self.file.raw(self._infos[number].name).reshape(-1)
            return self._last[1][inside : inside + end - at].tobytes()
        following = self._starts[number + 1] if number + 1 < len(self._starts) else self.size
        return bytes(min(end, following) - at)

    def _header(self, part: Part) -> bytes:
        held = part.data[: part.start].tobytes()
        entries = []
        for key, (begin, end) in part.entries.items():
            if key == ARCHITECTURE:
                entries.append(entry_bytes(key, part.metadata[key], "string"))
            elif not key.startswith(COMPACT):
                entries.append(held[begin:end])
        self._sizes, self._offsets, offset = [], [], 0
        table = []
        for info in self._infos:
            self._sizes.append(self.file.raw_bytes(info))
            self._offsets.append(offset)
            table.append(table_entry(info.name, tuple(reversed(info.shape)), info.type, offset))
            offset += aligned(self._sizes[-1], part.alignment)
        whole = held[:8] + struct.pack("<QQ", len(table), len(entries)) + b"".join(entries) + b"".join(table)
        return whole + bytes(-len(whole) % part.alignment)


def is_compact(path: str | Path) -> bool:
    """Whether the file is one: its first entry says so."""
    try:
        with open(path, "rb") as file:
            before = 24 + 8  # magic, version and counts; the length of the key
            return file.read(before + len(COMPACT))[before:] == COMPACT.encode()
    except OSError:
        return False


def compact_header(
    part: Part, infos: list[TensorInfo], packed: dict[str, int], offsets: list[int], said: list[bytes]
) -> bytes:
    """Of the compact file of a stock `part`. packed: tensor → bytes of its row. said: the entries `sqft.compact.*`."""
    held = part.data[: part.start].tobytes()
    entries = said + [
        entry_bytes(key, "sqft-compact", "string") if key == ARCHITECTURE else held[begin:end]
        for key, (begin, end) in part.entries.items()
    ]
    table = []
    for info, offset in zip(infos, offsets, strict=True):
        size = packed.get(info.name)
        dimensions = (size,) if size else tuple(reversed(info.shape))
        table.append(table_entry(info.name, dimensions, I8 if size else info.type, offset))
    whole = held[:8] + struct.pack("<QQ", len(table), len(entries)) + b"".join(entries) + b"".join(table)
    return whole + bytes(-len(whole) % part.alignment)
