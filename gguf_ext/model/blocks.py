"""The codes and grids of a file in the row order of the checkpoint, as a model folder offers those of its format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gguf_ext.arch import Config
from gguf_ext.blocks import TensorType, grid_of, row_weights, unpack
from gguf_ext.blocks.planes import Bytes
from gguf_ext.errors import GGUFError
from gguf_ext.model.names import Stored
from gguf_ext.reader import GGUFFile
from sqft_plugins.checkpoint.formats import Int4Format
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.grid import PER_CHANNEL, Grid, QuantizedWeight


class Blocks(Int4Format):
    """stored: tensor of the checkpoint → where it stands. config: as the table reads it."""

    name: ClassVar[str] = "GGUF"
    declared: ClassVar[str] = "gguf"

    def __init__(self, file: GGUFFile, stored: Mapping[str, Stored], config: Config):
        self.file, self.stored, self.config = file, stored, config

    @property
    def grid(self) -> GridStamp:
        """Each weight has its own kind of grid: the stamp names them all."""
        return GridStamp(group_size=PER_CHANNEL, symmetric=False)

    @cached_property
    def modules(self) -> list[str]:
        """Those of a type that is a grid, the embedding and the head among them."""
        return sorted(name.removesuffix(".weight") for name in self.stored if self._is_grid(name))

    def parts(self, module: str) -> list[str]:
        return [f"{module}.weight"]

    def shape(self, module: str) -> tuple[int, int]:
        rows, columns = self.file.tensors[self.tensor_of(module)].shape
        return rows, columns

    def tensor_of(self, module: str) -> str:
        """The tensor of the file that holds the weight of a module."""
        return self.stored[f"{module}.weight"].tensor

    def type_of(self, module: str) -> TensorType:
        return TensorType(self.file.tensors[self.tensor_of(module)].type)

    def weight(self, module: str, rows: slice = slice(None)) -> QuantizedWeight:
        """rows: of the checkpoint. Raises GridError for a scale or an offset that is NaN or infinite."""
        order = self.file_order(module)
        places = rows if order is None else torch.argsort(order)[rows].numpy()
        weight = unpack(self.file.raw(self.tensor_of(module), places), self.type_of(module))
        weight.grid.check_finite(f"{self.file.path}: {self.tensor_of(module)}")
        return weight

    def packed(self, module: str) -> PackedRows:
        """The rows of the file, in memory, in the order of the checkpoint. Raises what `weight` raises."""
        order, kind = self.file_order(module), self.type_of(module)
        raw = self.file.raw(self.tensor_of(module))
        rows = PackedRows(np.array(raw) if order is None else raw[torch.argsort(order).numpy()], kind)
        grid_of(rows.raw, kind).check_finite(f"{self.file.path}: {self.tensor_of(module)}")
        return rows

    def file_order(self, module: str) -> Tensor | None:
        """int64 [out]: the row of the checkpoint in each row of the file; None where rows stay."""
        return row_order(self.stored[f"{module}.weight"], self.config)

    def _is_grid(self, name: str) -> bool:
        info = self.file.tensors[self.stored[name].tensor]
        return len(info.shape) == 2 and info.type in _GRIDS


@dataclass(frozen=True)
class PackedRows:
    """A weight as the blocks of a file have it (a `PackedWeight`). raw: uint8 [out, row_bytes], of the type `kind`."""

    raw: Bytes
    kind: TensorType

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.raw), row_weights(self.raw.shape[1], self.kind)

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes

    def rows(self, rows: slice | Tensor) -> QuantizedWeight:
        return unpack(self.raw[rows if isinstance(rows, slice) else rows.numpy()], self.kind)


_GRIDS = frozenset(int(kind) for kind in TensorType if kind.is_block)


class FileOrder(Mapping[str, Tensor]):
    """Codes by module, in the order of the checkpoint → by tensor, in the order of the file; each made when it is asked
    for."""

    def __init__(self, blocks: Blocks, codes: Mapping[str, Tensor]):
        self._blocks, self._codes = blocks, codes
        self._modules = {blocks.tensor_of(module): module for module in codes}

    def __getitem__(self, tensor: str) -> Tensor:
        module = self._modules[tensor]
        order = self._blocks.file_order(module)
        return self._codes[module] if order is None else self._codes[module][order]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def holds_codes_in(grid: Grid, dtype: torch.dtype) -> bool:
    """Whether a value of the grid that is rounded to `dtype` is still nearest to its own level: the floats beside the
    largest value must stand as close as the levels. Multiples of the scale may stand as close as the floats do, since
    they are floats then; an offset may put a value half way."""
    zero_point = torch.zeros_like(grid.scale) if grid.zero_point is None else grid.zero_point.to(torch.float32)
    levels = torch.tensor(grid.kind.levels or range(grid.kind.max_code + 1), dtype=torch.float32).unique()
    scale = grid.scale.abs()
    largest = torch.maximum((levels[-1] - zero_point).abs(), (levels[0] - zero_point).abs()) * scale
    if grid.offset is not None:
        largest = largest + grid.offset.abs()

    info = torch.finfo(dtype)
    _, exponent = torch.frexp(largest)  # largest < 2^exponent
    spacing = (info.eps * torch.exp2(exponent - 1.0)).clamp(min=info.smallest_normal * info.eps)
    gap = levels.diff().min() * scale
    close = spacing <= gap if grid.offset is None else spacing < gap
    return bool((close | (scale == 0)).all())


def row_order(stored: Stored, config: Config) -> Tensor | None:
    return None if stored.rule.rows is None else stored.rule.rows(config)


def checkpoint_tensor(file: GGUFFile, stored: Stored, config: Config) -> Tensor:
    """A tensor as the checkpoint has it, float32: [in, out] of a Conv1D, without what is added in the file. Raises what
    `GGUFFile.dequantize` raises."""
    shape = file.tensors[stored.tensor].shape
    tensor = torch.from_numpy(file.dequantize(stored.tensor)).view(shape)
    if (order := row_order(stored, config)) is not None:
        if len(order) != len(tensor):
            raise GGUFError(
                f"{file.path}: {stored.tensor} has {len(tensor)} rows, {len(order)} by the heads of the file: copy it "
                "again"
            )
        tensor = tensor[torch.argsort(order)]
    if not stored.is_weight:
        return tensor
    if stored.rule.add:
        tensor = tensor - stored.rule.add
    return tensor.t() if stored.rule.transposed else tensor
