"""The header of one GGUF file, parsed: metadata, and where its tensors are.

Every count, length and offset is checked against the size of the file before it is used: a damaged file is an error in
bounded time and memory. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gguf_ext.blocks import TensorType, row_bytes, type_name
from gguf_ext.errors import BlockSizeError, DamagedFileError, GGUFError
from gguf_ext.packed import HEADER, VERSION, shape_of
from gguf_ext.parts import MAGIC, aligned, check_file
from sqft_plugins.identity import record_of

VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF value type → struct format."""
KINDS = {0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32", 7: "bool"}
KINDS |= {STRING: "string", 10: "uint64", 11: "int64", 12: "float64"}
"""GGUF value type → `gguf_ext.arch.Entry.kind`; an array has the plural."""
NUMBERS = {kind: number for number, kind in KINDS.items()}
"""The inverse."""
PLURALS = {"string": "strings", "float32": "floats", "int32": "ints", "bool": "bools"}
LONGEST_NAME = 127
"""Characters of a tensor's name: ggml takes 63, programs that compile it for themselves twice as many."""
MAX_DIMENSIONS = 4
ARCHITECTURE, COMPACT = "general.architecture", "sqft.compact."
"""Entries with this prefix make a file compact: gguf_ext/stock.py."""
I8 = 24
"""ggml's number."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is.

    name: in the file.
    type: ggml's number.
    shape: [out, in] or [n] (GGUF stores it reversed).
    offset: from the start of the file.
    space: bytes up to the next tensor or the end of the file.
    part: which of the files has it, from 0.
    packed: bytes of a packed tensor of a compact file, which is shown as the Q4_0 that it stands for; else 0.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int
    space: int = 0
    part: int = 0
    packed: int = 0

    @property
    def is_ours(self) -> bool:
        """Whether this package decodes it; all others are left to the gguf package."""
        return self.type in set(TensorType)

    @property
    def type_name(self) -> str:
        return type_name(self.type)


class Part:
    """One file, parsed.

    metadata, kinds: as in GGUFFile, of this file alone.
    entries: key → where its bytes begin and end, key and value.
    table: where the table of tensors begins and ends.
    start: where the first tensor may begin. alignment: of tensors, in bytes.
    size: of the file. record: the kernel's record of it before it was read.
    hash: SHA-256 of all that stands before the tensors.
    compact: of a compact file what `sqft.compact.*` says, else empty. Its metadata and tensors are shown as those of
        the stock file that it stands for.
    """

    def __init__(self, path: Path):
        self.path = path
        self.size = check_file(path)
        self.record = record_of(path)

        # the header
        self.data = np.memmap(path, np.uint8, mode="r")
        self._at = len(MAGIC)
        version = self._number("I")
        if version not in VERSIONS:
            raise DamagedFileError(f"{path} has GGUF version {version}, this release reads {VERSIONS}: export it again")
        tensors, entries = self._number("Q"), self._number("Q")
        self._bounded(tensors, 24, "tensors")  # name length, dimensions, one dimension, type and offset take more
        self._bounded(entries, 12, "metadata entries")

        # metadata, then the table of tensors
        self.metadata: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        self.entries: dict[str, tuple[int, int]] = {}
        for _ in range(entries):
            begin = self._at
            if not (key := self._string()):
                self._damaged("a key without a name")
            if key in self.entries:
                self._damaged(f"two entries called {key}")
            self.metadata[key], self.kinds[key] = self._value(self._number("I"))
            self.entries[key] = begin, self._at
        self.compact = self._take_compact()
        begin = self._at
        self._infos = [self._tensor_info() for _ in range(tensors)]
        self.table = begin, self._at
        self.hash = hashlib.sha256(self.data[: self._at].data).hexdigest()

        # where the tensors begin
        self.alignment = self.metadata.get("general.alignment", 32)
        kind = self.kinds.get("general.alignment", "uint32")  # of another one llama.cpp dies
        if kind != "uint32" or self.alignment < 1 or self.alignment & (self.alignment - 1):
            self._damaged(f"alignment {self.alignment}")
        self.start = aligned(self._at, self.alignment)

    def located(self, part: int) -> list[TensorInfo]:
        """The tensors with their place in the file, in the order of the header."""
        order = sorted(self._infos, key=lambda info: (info.offset, self._bytes(info)))
        ends = [*(self.start + info.offset for info in order[1:]), self.size]
        space = {id(info): end - self.start - info.offset for info, end in zip(order, ends, strict=False)}
        found = []
        for info in self._infos:
            if info.offset % self.alignment or self._bytes(info) > space[id(info)] or space[id(info)] < 0:
                self._damaged(f"tensor {info.name} lies outside the file or on the next one")
            offset = self.start + info.offset
            if self.compact and info.type == I8 and len(info.shape) == 1:
                found.append(self._packed(info, offset, space[id(info)], part))
                continue
            found.append(TensorInfo(info.name, info.type, info.shape, offset, space[id(info)], part))
        return found

    def _take_compact(self) -> dict[str, Any]:
        own = {key.removeprefix(COMPACT): value for key, value in self.metadata.items() if key.startswith(COMPACT)}
        if not own:
            return {}
        if own.get("version") != VERSION:
            raise GGUFError(
                f"{self.path} is compact, version {own.get('version')}, this release reads {VERSION}: upgrade"
            )
        kinds = {key: self.kinds.get(COMPACT + key) for key in ("architecture", "bytes", "sha256")}
        if kinds != {"architecture": "string", "bytes": "uint64", "sha256": "string"} or ARCHITECTURE not in self.kinds:
            self._damaged("what makes a file compact is not whole")
        if own["bytes"] > 64 * self.size:
            self._damaged(f"it stands for {own['bytes']} bytes")
        for key in own:
            del self.metadata[COMPACT + key], self.kinds[COMPACT + key]
        self.metadata[ARCHITECTURE] = own["architecture"]
        return own

    def _packed(self, info: TensorInfo, offset: int, space: int, part: int) -> TensorInfo:
        size = min(info.shape[0], max(space, 0), self.size - offset)
        shape = shape_of(self.data[offset : offset + HEADER.size].tobytes(), size)
        if shape is None or shape.bytes != info.shape[0]:
            self._damaged(f"tensor {info.name} is no packed tensor")
        whole = (shape.out, shape.columns)
        blocks = shape.out * row_bytes(shape.columns, TensorType.Q4_0)
        return TensorInfo(info.name, TensorType.Q4_0, whole, offset, blocks, part, shape.bytes)

    def _damaged(self, what: str) -> NoReturn:
        raise DamagedFileError(
            f"{self.path} is damaged ({what}, near byte {self._at} of {self.size}): copy or export it again"
        )

    def _take(self, count: int) -> NDArray[np.uint8]:
        if count > self.size - self._at:
            self._damaged(f"{count} bytes wanted, {self.size - self._at} left")
        piece = self.data[self._at : self._at + count]
        self._at += count
        return piece

    def _bounded(self, count: int, smallest: int, what: str) -> None:
        if count * smallest > self.size - self._at:
            self._damaged(f"{count} {what}")

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)).tobytes())[0]

    def _string(self) -> str:
        return self._take(self._number("Q")).tobytes().decode("utf-8", errors="replace")

    def _value(self, kind: int) -> tuple[Any, str]:
        if kind in SCALARS:
            return self._number(SCALARS[kind]), KINDS[kind]
        if kind == STRING:
            return self._string(), KINDS[kind]
        if kind != ARRAY:
            self._damaged(f"value type {kind}")

        item, count = self._number("I"), self._number("Q")
        if item not in KINDS:
            self._damaged(f"array of type {item}")
        plural = PLURALS.get(KINDS[item], f"{KINDS[item]}s")
        if item == STRING:
            self._bounded(count, 8, "strings")
            return self._strings(count), plural

        code = SCALARS[item]
        width = struct.calcsize("<" + code)
        values = self._take(count * width)
        return (values != 0 if code == "?" else values.view(np.dtype(f"<{code}"))).tolist(), plural

    def _strings(self, count: int) -> list[str]:
        """A vocabulary has some hundred thousand: a tight loop over one buffer."""
        buffer = self.data.data
        read = struct.Struct("<Q").unpack_from
        at, size, found = self._at, self.size, []
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
        if not name.isprintable() or len(name) > LONGEST_NAME:  # every message of the tensor shows it
            self._damaged(f"a tensor called {name[:40]!a}, {len(name)} characters")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._damaged(f"tensor {name} with {dimensions} dimensions")
        shape = [self._number("Q") for _ in range(dimensions)]
        if min(shape) < 1 or math.prod(shape) > self.size * 32 or max(shape) > self.size * 32:
            # llama.cpp divides by a dimension; the densest type has more than a quarter of a bit a weight
            self._damaged(f"tensor {name} of shape {shape}")
        return TensorInfo(name, self._number("I"), tuple(reversed(shape)), self._number("Q"))

    def _bytes(self, info: TensorInfo) -> int:
        try:
            return math.prod(info.shape[:-1]) * row_bytes(info.shape[-1], TensorType(info.type))
        except (ValueError, BlockSizeError):  # a type we do not know, or blocks that do not fit: `raw` refuses it
            return 0
