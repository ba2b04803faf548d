"""Reading a GGUF file: metadata and raw tensors. Ours, so that a file is verified by other code than wrote it.

Every count, length and offset is checked against the size of the file before it is used: a damaged file is an error in
bounded time and memory. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_ext.blocks import TensorType, dequantize, row_bytes
from gguf_ext.errors import DamagedFileError, GGUFError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF value type → struct format."""
MAX_DIMENSIONS = 4
OTHER_TYPES = {3: "Q4_1", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}


@dataclass(frozen=True)
class TensorInfo:
    """type: ggml's number. shape: [out, in] or [n] (GGUF stores it reversed). offset: from the start of the file."""

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int

    @property
    def type_name(self) -> str:
        known = {int(kind): kind.name for kind in TensorType}
        return known.get(self.type) or OTHER_TYPES.get(self.type, f"type {self.type}")


class GGUFFile:
    """path, metadata (key → value) and tensors (name → TensorInfo) of a file. Raises DamagedFileError."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise GGUFError(f"{path} is not a file: give the path of a GGUF file")
        self._size = self.path.stat().st_size
        if self._size < 24:
            raise DamagedFileError(f"{path} has {self._size} bytes, too few for a GGUF file: copy or export it again")
        self._data = np.memmap(self.path, np.uint8, mode="r")
        self._at = 4
        if self._data[:4].tobytes() != MAGIC:
            raise DamagedFileError(f"{path} does not begin with GGUF: it is no GGUF file, give another")
        version = self._number("I")
        if version not in VERSIONS:
            raise DamagedFileError(f"{path} has GGUF version {version}, this release reads {VERSIONS}: export it again")
        tensors, entries = self._number("Q"), self._number("Q")
        self._bounded(tensors, 24, "tensors")  # name length, dimensions, one dimension, type and offset take more
        self._bounded(entries, 12, "metadata entries")
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            self.metadata[key] = self._value(self._number("I"))
        infos = [self._tensor_info() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self._damaged(f"alignment {alignment}")
        start = -(-self._at // alignment) * alignment
        self.tensors: dict[str, TensorInfo] = {}
        for info in infos:
            info = TensorInfo(info.name, info.type, info.shape, start + info.offset)
            if info.name in self.tensors:
                self._damaged(f"two tensors called {info.name}")
            if info.offset % alignment or info.offset + self._bytes(info) > self._size:
                self._damaged(f"tensor {info.name} lies outside the file")
            self.tensors[info.name] = info

    def raw(self, name: str, rows: slice = slice(None)) -> NDArray[np.uint8]:
        """uint8 [rows, row_bytes] of a tensor, [1, bytes] of a vector; mapped, not read. Raises GGUFError for a type
        that this package does not know."""
        info = self.tensors[name]
        kind = self.kind(name)
        count = math.prod(info.shape[:-1])
        width = row_bytes(info.shape[-1], kind)
        return self._data[info.offset : info.offset + count * width].reshape(count, width)[rows]

    def dequantize(self, name: str, rows: slice = slice(None)) -> NDArray[np.float32]:
        """float32 [rows, in] of a tensor, [1, n] of a vector."""
        return dequantize(self.raw(name, rows), self.kind(name))

    def kind(self, name: str) -> TensorType:
        """The type of a tensor. Raises GGUFError for one that this package does not know."""
        info = self.tensors[name]
        try:
            return TensorType(info.type)
        except ValueError:
            kinds = ", ".join(kind.name for kind in TensorType)
            raise GGUFError(
                f"{self.path}: tensor {name} is {info.type_name}, not one of {kinds}: give a file that sqft wrote"
            ) from None

    # --- parsing ---

    def _damaged(self, what: str) -> None:
        raise DamagedFileError(
            f"{self.path} is damaged ({what}, near byte {self._at} of {self._size}): copy or export it again"
        )

    def _take(self, count: int) -> NDArray[np.uint8]:
        if count > self._size - self._at:
            self._damaged(f"{count} bytes wanted, {self._size - self._at} left")
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece

    def _bounded(self, count: int, smallest: int, what: str) -> None:
        if count * smallest > self._size - self._at:
            self._damaged(f"{count} {what}")

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)).tobytes())[0]

    def _string(self) -> str:
        return self._take(self._number("Q")).tobytes().decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            self._damaged(f"value type {kind}")
        item, count = self._number("I"), self._number("Q")
        if item == STRING:
            self._bounded(count, 8, "strings")
            return self._strings(count)
        if item not in SCALARS:
            self._damaged(f"array of type {item}")
        code = SCALARS[item]
        width = struct.calcsize("<" + code)
        return self._take(count * width).view(np.dtype(f"<{code}" if width > 1 else code)).tolist()

    def _strings(self, count: int) -> list[str]:
        """A vocabulary has some hundred thousand: a tight loop over one buffer."""
        buffer = self._data.data
        read = struct.Struct("<Q").unpack_from
        at, size, found = self._at, self._size, []
        for _ in range(count):
            end = at + 8 + read(buffer, at)[0] if at + 8 <= size else size + 1
            if end > size:
                self._damaged("a string runs past the end")
            found.append(bytes(buffer[at + 8 : end]).decode("utf-8", errors="replace"))
            at = end
        self._at = at
        return found

    def _tensor_info(self) -> TensorInfo:
        name, dimensions = self._string(), self._number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._damaged(f"tensor {name} with {dimensions} dimensions")
        shape = [self._number("Q") for _ in range(dimensions)]
        if math.prod(shape) > self._size * 32:  # the densest type has more than a quarter of a bit a weight
            self._damaged(f"tensor {name} of shape {shape}")
        return TensorInfo(name, self._number("I"), tuple(reversed(shape)), self._number("Q"))

    def _bytes(self, info: TensorInfo) -> int:
        try:
            return math.prod(info.shape[:-1]) * row_bytes(info.shape[-1], TensorType(info.type))
        except ValueError:  # a type we do not know, or one whose blocks do not fit: `raw` refuses it
            return 0
