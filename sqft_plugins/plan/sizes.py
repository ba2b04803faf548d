"""Bytes on disk of what each step writes: exact, from the headers of the source's files and the layouts of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch

from sqft_plugins.adapter.tensor_names import A, B, in_file
from sqft_plugins.checkpoint.compact import compact_specs, nibble_bytes
from sqft_plugins.checkpoint.int4 import int4_specs, scale_dtype
from sqft_plugins.checkpoint.shards import TensorSpec, layout
from sqft_plugins.checkpoint.stamp import FOLDER, GridStamp
from sqft_plugins.checkpoint.writer import WEIGHT_FILES, shard_layouts
from sqft_plugins.compress.float_model import FloatModel
from sqft_plugins.grid import group_count
from sqft_plugins.mask import Pattern, packed_mask_shape

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Stage:
    """What lies on disk after a step.

    bytes: of the weight files; other: of mask, tokenizer and the like.
    bits_per_weight: of the linear layers, with scales, without the mask; of an adapter, of its parameters.
    exact: `bytes` is exact, otherwise the most that it can be.
    """

    stage: str
    bytes: int
    other: int
    bits_per_weight: float
    exact: bool = True

    @property
    def total(self) -> int:
        """Bytes of all its files."""
        return self.bytes + self.other


class Sizes:
    """The stages of one source folder."""

    def __init__(self, source: FloatModel):
        self.source = source
        self.stored = {name: source.folder.spec(name) for name in source.folder.files}
        self.side = side_bytes(source.path)
        self.weights = sum(rows * columns for rows, columns in source.modules.values())

    def of_source(self) -> Stage:
        bits = self._bits(self._changed(lambda module, shape, stored: {module: stored}))
        return Stage("source", self.source.folder.weight_bytes, self.side, bits)

    def pruned(self, name: str = "pruned") -> Stage:
        """In the dtype of the source, with a mask of one bit a weight."""
        changed = self._changed(lambda module, shape, stored: {self.source.written(module): stored})
        return Stage(name, self._bytes(changed), self.side + self.mask_bytes(), self._bits(changed))

    def int4(self, grid: GridStamp, name: str | None = None) -> Stage:
        changed = self._changed(lambda module, shape, stored: int4_specs(module, shape, grid, stored.dtype))
        return Stage(name or grid.label, self._bytes(changed), self.side + self.mask_bytes(), self._bits(changed))

    def compact(self, grid: GridStamp, patterns: Mapping[str, Pattern]) -> Stage:
        """The compact form, which is its own mask. At most: weights that were 0 before need no code."""
        changed = self._changed(
            lambda module, shape, stored: planned_specs(module, shape, patterns[module], grid, stored.dtype)
        )
        return Stage("compact", self._bytes(changed), self.side, self._bits(changed), exact=False)

    def adapter(self, targets: Iterable[str], rank: int, name: str = "adapter") -> Stage:
        """A super-adapter in float32, as PEFT saves it."""
        specs = {}
        for module in targets:
            rows, columns = self.source.structure.shapes[module]
            specs[in_file(module + A)] = TensorSpec(torch.float32, (rank, columns))
            specs[in_file(module + B)] = TensorSpec(torch.float32, (rows, rank))
        return Stage(name, file_bytes(specs), 0, 32.0)

    def mask_bytes(self) -> int:
        shapes = self.source.modules.items()
        return file_bytes({name: TensorSpec(torch.uint8, packed_mask_shape(shape)) for name, shape in shapes})

    def _changed(self, written: Callable[[str, tuple[int, int], TensorSpec], Specs]) -> Mapping[str, Specs]:
        """Stored weight of each module → what is written in its place, by `written(module, its shape, stored spec)`."""
        source = self.source
        return source.changed(
            lambda module: written(module, source.modules[module], self.stored[source.stored(module)])
        )

    def _bytes(self, changed: Mapping[str, Specs]) -> int:
        """The files as FolderWriter lays them out: what is not changed is copied, under the model's own names."""
        renamed = self.source.renamed
        copied = {name: {renamed.get(name, name): spec} for name, spec in self.stored.items()}
        layouts = shard_layouts(self.source.folder, {**copied, **changed})
        return sum(file_bytes(specs) for specs in layouts.values())

    def _bits(self, changed: Mapping[str, Specs]) -> float:
        return 8 * sum(spec.nbytes for specs in changed.values() for spec in specs.values()) / self.weights


def planned_specs(
    module: str, shape: tuple[int, int], pattern: Pattern, grid: GridStamp, dtype: torch.dtype
) -> dict[str, TensorSpec]:
    """What the compact form stores of a module (checkpoint/compact.py) where `pattern` prunes all that it can."""
    rows, columns = shape
    scales = TensorSpec(scale_dtype(dtype), (rows, group_count(columns, grid.group_size, module)))
    kept = columns - round(pattern.sparsity * columns)  # of each row, for N:M too
    return compact_specs(module, shape, rows * nibble_bytes(kept), scales, grid.symmetric)


def file_bytes(specs: Specs) -> int:
    """A safetensors file with these tensors, its header included."""
    return len(layout(specs)[0]) + sum(spec.nbytes for spec in specs.values())


def side_bytes(path: Path) -> int:
    """The files that are copied along: tokenizer, generation config, licence, and config.json."""
    files = [file for file in path.rglob("*") if file.is_file()]
    copied = [file for file in files if not {part for part in file.relative_to(path).parts if part.startswith(".")}]
    return sum(
        file.stat().st_size
        for file in copied
        if file.relative_to(path).parts[0] != FOLDER and not any(fnmatch(file.name, kind) for kind in WEIGHT_FILES)
    )
