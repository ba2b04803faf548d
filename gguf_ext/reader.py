"""Reading a GGUF file, whole or in parts. Ours, so that a file is verified by other code than wrote it, and because the
gguf package's `GGUFReader` trusts every length: it reads values that a file does not have, and tensors on one another.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_ext.blocks import TensorType, dequantize
from gguf_ext.blocks.types import BLOCKS, CODEBOOKS
from gguf_ext.errors import DamagedFileError, GGUFError
from gguf_ext.gguf_package import require_gguf
from gguf_ext.header import Part, TensorInfo
from gguf_ext.packed import unpack_blocks
from gguf_ext.parts import COUNT, INDEX, TENSORS, part_name


class GGUFFile:
    """A file, whole or in parts.

    path: the file, or the first of its parts.
    metadata: key → value.
    kinds: key → `Entry.kind`.
    tensors: name → TensorInfo, of all parts.
    parts: the files, in order.
    bytes: of all parts.

    Raises DamagedFileError; GGUFError for a path that is no file or a later part.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        first = Part(self.path)
        self.metadata, self.kinds = first.metadata, first.kinds
        self.parts = [first, *map(Part, self._others())]
        self.bytes = sum(part.size for part in self.parts)

        # the tensors of all parts, each once
        self.tensors: dict[str, TensorInfo] = {}
        for index, part in enumerate(self.parts):
            says = (part.kinds.get(INDEX), part.metadata.get(INDEX), part.metadata.get(COUNT))
            if index and says != ("uint16", index, len(self.parts)):
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
        if len(self.parts) > 1 and wanted is not None and wanted != len(self.tensors):
            raise DamagedFileError(
                f"the parts of {self.path} have {len(self.tensors)} tensors, not {wanted}: copy or export all again"
            )

    def check_stock(self) -> None:
        """Raises GGUFError for a compact file, whose bytes are not those that llama.cpp reads."""
        if self.parts[0].compact:
            raise GGUFError(f"{self.path} is compact: write the stock file first, `sqft export gguf FILE --expand`")

    def raw(self, name: str, rows: Any = slice(None)) -> NDArray[np.uint8]:
        """uint8 [rows, row_bytes] of a tensor, [1, bytes] of a vector; mapped, not read, but for a packed tensor of a
        compact file, whose blocks are made. Raises DamagedFileError for a tensor that is cut off, GGUFError for a type
        that the installed gguf does not know."""
        info = self.tensors[name]
        part = self.parts[info.part].path
        count, width = math.prod(info.shape[:-1]), self._row_bytes(info)
        if info.packed:
            mapped = self._mapped(part, info.offset, (info.packed,))
            whole: NDArray[np.uint8] = unpack_blocks(mapped, f"{part}: tensor {name}")[rows]
            return whole
        if count * width > info.space:
            raise DamagedFileError(f"{part} is cut off within tensor {name}: copy or export it again")
        if not count * width:
            data: NDArray[np.uint8] = np.empty((count, width), np.uint8)
        else:
            data = self._mapped(part, info.offset, (count, width))
        found: NDArray[np.uint8] = data[rows]
        return found

    def raw_bytes(self, info: TensorInfo) -> int:
        """Of what `raw` gives. Raises what it raises for the type."""
        return math.prod(info.shape[:-1]) * self._row_bytes(info)

    def _mapped(self, part: Path, offset: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Anew each time, so that what was read of one tensor does not stay in memory with the next."""
        try:
            return np.memmap(part, np.uint8, "r", offset, shape)
        except (ValueError, OSError) as error:  # it was whole when its header was read
            raise DamagedFileError(f"{part} has changed since it was opened: copy or export it again") from error

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

    def grid_type(self, name: str) -> TensorType:
        """The type of a tensor whose codes are a grid. Raises GGUFError for a tensor that the file does not have, and
        for a type without a grid."""
        if name not in self.tensors:
            raise GGUFError(f"{self.path} has no tensor {name}: name one of its own, see `sqft inspect`")
        info = self.tensors[name]
        if info.is_ours and TensorType(info.type).is_block:
            return TensorType(info.type)
        why = "a codebook" if info.type in CODEBOOKS else "of floats" if info.is_ours else "not known here"
        raise GGUFError(
            f"{self.path}: tensor {name} is {info.type_name}, {why}, which is no grid: leave its module out, or take a "
            "file of another type"
        )

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
