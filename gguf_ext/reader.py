"""Reading a GGUF file, whole or in parts. Ours, so that a file is verified by other code than wrote it, and because the
gguf package's `GGUFReader` trusts every length: it reads values that a file does not have, and tensors on one another.

Here every count, length and offset is checked against the size of the file before it is used: a damaged file is an
error in bounded time and memory. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gguf_ext.blocks import TensorType, dequantize, row_bytes, type_name
from gguf_ext.blocks.types import BLOCKS
from gguf_ext.errors import BlockSizeError, DamagedFileError, GGUFError
from gguf_ext.gguf_package import require_gguf
from gguf_ext.parts import COUNT, INDEX, MAGIC, TENSORS, check_file, part_name

VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF value type → struct format."""
KINDS = {0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32", 7: "bool"}
KINDS |= {STRING: "string", 10: "uint64", 11: "int64", 12: "float64"}
"""GGUF value type → `gguf_ext.arch.Entry.kind`; an array has the plural."""
PLURALS = {"string": "strings", "float32": "floats", "int32": "ints", "bool": "bools"}
MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is.

    name: in the file.
    type: ggml's number.
    shape: [out, in] or [n] (GGUF stores it reversed).
    offset: from the start of the file.
    space: bytes up to the next tensor or the end of the file.
    part: which of the files has it, from 0.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int
    space: int = 0
    part: int = 0

    @property
    def is_ours(self) -> bool:
        """Whether this package decodes it; all others are left to the gguf package."""
        return self.type in set(TensorType)

    @property
    def type_name(self) -> str:
        return type_name(self.type)


class GGUFFile:
    """A file, whole or in parts.

    path: the file, or the first of its parts.
    metadata: key → value.
    kinds: key → `Entry.kind`.
    tensors: name → TensorInfo, of all parts.
    bytes: of all parts.

    Raises DamagedFileError; GGUFError for a path that is no file or a later part.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        first = _Part(self.path)
        self.metadata, self.kinds = first.metadata, first.kinds
        self._parts = [first, *map(_Part, self._others())]
        self.bytes = sum(part.size for part in self._parts)

        # the tensors of all parts, each once
        self.tensors: dict[str, TensorInfo] = {}
        for index, part in enumerate(self._parts):
            says = (part.kinds.get(INDEX), part.metadata.get(INDEX), part.metadata.get(COUNT))
            if index and says != ("uint16", index, len(self._parts)):
                raise DamagedFileError(
                    f"{part.path} is not part {index + 1} of {self.path} inside: copy or export all parts again"
                )
            for info in part.located(index):
                if info.name in self.tensors:
                    raise DamagedFileError(
                        f"{part.path} is damaged (two tensors called {info.name}): copy or export it again"
                    )
                self.tensors[info.name] = info

        wanted = self.metadata.get(TENSORS)
        if len(self._parts) > 1 and wanted is not None and wanted != len(self.tensors):
            raise DamagedFileError(
                f"the parts of {self.path} have {len(self.tensors)} tensors, not {wanted}: copy or export all again"
            )

    def raw(self, name: str, rows: Any = slice(None)) -> NDArray[np.uint8]:
        """uint8 [rows, row_bytes] of a tensor, [1, bytes] of a vector; mapped, not read. Raises DamagedFileError for a
        tensor that is cut off, GGUFError for a type that the installed gguf does not know."""
        info = self.tensors[name]
        part = self._parts[info.part].path
        count, width = math.prod(info.shape[:-1]), self._row_bytes(info)
        if count * width > info.space:
            raise DamagedFileError(f"{part} is cut off within tensor {name}: copy or export it again")
        if not count * width:
            data: NDArray[np.uint8] = np.empty((count, width), np.uint8)
        else:
            # mapped anew each time, so that what was read of one tensor does not stay in memory with the next
            data = np.memmap(part, np.uint8, "r", info.offset, (count, width))
        found: NDArray[np.uint8] = data[rows]
        return found

    def dequantize(self, name: str, rows: Any = slice(None)) -> NDArray[np.float32]:
        """float32 [rows, in] of a tensor of any type, [1, n] of a vector: codebooks are decoded by the gguf package.
        Raises what `raw` raises, and DependencyError where it needs that package."""
        info, data = self.tensors[name], self.raw(name, rows)
        if info.is_ours:
            return dequantize(data, TensorType(info.type))

        gguf = require_gguf()
        try:
            kind = gguf.GGMLQuantizationType(info.type)
            decoded: NDArray[np.float32] = gguf.quants.dequantize(np.ascontiguousarray(data), kind)
        except NotImplementedError as error:
            raise GGUFError(
                f"{self.path}: tensor {name} is {info.type_name}, which the installed gguf cannot decode: "
                "upgrade it, or give another file"
            ) from error
        return decoded.astype(np.float32, copy=False)

    def _row_bytes(self, info: TensorInfo) -> int:
        weights, size = BLOCKS[TensorType(info.type)] if info.is_ours else self._foreign_block(info)
        if info.shape[-1] % weights:
            raise DamagedFileError(
                f"{self.path}: tensor {info.name} of shape {info.shape} does not fit blocks of {weights}: "
                "copy or export it again"
            )
        return info.shape[-1] // weights * size

    def _foreign_block(self, info: TensorInfo) -> tuple[int, int]:
        """Weights and bytes of a block of a type that the gguf package decodes."""
        gguf = require_gguf()
        try:
            weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(info.type)]
        except (ValueError, KeyError) as error:
            raise GGUFError(
                f"{self.path}: tensor {info.name} has the type {info.type}, which the installed gguf does not know: "
                "upgrade it, or give another file"
            ) from error
        return int(weights), int(size)

    def kind(self, name: str) -> TensorType:
        """The type of a tensor. Raises GGUFError for a type that `sqft export gguf` does not write."""
        info = self.tensors[name]
        if not info.is_ours or not TensorType(info.type).is_written:
            kinds = ", ".join(kind.name for kind in TensorType if kind.is_written)
            raise GGUFError(
                f"{self.path}: tensor {name} is {info.type_name}, not one of {kinds}: give a file that sqft wrote"
            )
        return TensorType(info.type)

    def _others(self) -> list[Path]:
        """The parts after the first."""
        count, index = self.metadata.get(COUNT, 0), self.metadata.get(INDEX, 0)
        if not isinstance(count, int) or not isinstance(index, int) or count < 2:
            return []

        named = part_name(self.path.name)
        if named is None or named.count != count or named.index != index:
            raise GGUFError(
                f"{self.path} is part {index + 1} of {count} but not called so: give it back its name, "
                f"NAME-{index + 1:05}-of-{count:05}.gguf"
            )

        if index:
            raise GGUFError(f"{self.path} is part {index + 1} of {count}: give the first, {named.name(0)}")

        others = [self.path.with_name(named.name(i)) for i in range(1, count)]
        if lost := next((path.name for path in others if not path.is_file()), None):
            raise GGUFError(f"{self.path} has {count} parts but {lost} is not beside it: copy all parts")
        return others


class _Part:
    """One file, parsed: metadata, kinds, and where its tensors are."""

    def __init__(self, path: Path):
        self.path = path
        self.size = check_file(path)

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
        for _ in range(entries):
            if not (key := self._string()):
                self._damaged("a key without a name")
            self.metadata[key], self.kinds[key] = self._value(self._number("I"))
        self._infos = [self._tensor_info() for _ in range(tensors)]

        # where the tensors begin
        self._alignment = self.metadata.get("general.alignment", 32)
        kind = self.kinds.get("general.alignment", "uint32")  # of another one llama.cpp dies
        if kind != "uint32" or self._alignment < 1 or self._alignment & (self._alignment - 1):
            self._damaged(f"alignment {self._alignment}")
        self._start = -(-self._at // self._alignment) * self._alignment

    def located(self, part: int) -> list[TensorInfo]:
        """The tensors with their place in the file, in the order of the header."""
        order = sorted(self._infos, key=lambda info: (info.offset, self._bytes(info)))
        ends = [*(self._start + info.offset for info in order[1:]), self.size]
        space = {id(info): end - self._start - info.offset for info, end in zip(order, ends, strict=False)}
        found = []
        for info in self._infos:
            if info.offset % self._alignment or self._bytes(info) > space[id(info)] or space[id(info)] < 0:
                self._damaged(f"tensor {info.name} lies outside the file or on the next one")
            offset = self._start + info.offset
            found.append(TensorInfo(info.name, info.type, info.shape, offset, space[id(info)], part))
        return found

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
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._damaged(f"tensor {name} with {dimensions} dimensions")
        shape = [self._number("Q") for _ in range(dimensions)]
        if math.prod(shape) > self.size * 32 or max(shape) > self.size * 32:
            # the densest type has more than a quarter of a bit a weight
            self._damaged(f"tensor {name} of shape {shape}")
        return TensorInfo(name, self._number("I"), tuple(reversed(shape)), self._number("Q"))

    def _bytes(self, info: TensorInfo) -> int:
        try:
            return math.prod(info.shape[:-1]) * row_bytes(info.shape[-1], TensorType(info.type))
        except (ValueError, BlockSizeError):  # a type we do not know, or blocks that do not fit: `raw` refuses it
            return 0
