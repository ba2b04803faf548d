"""`sqft inspect FILE.gguf`: types, zeros, codes and scales of every tensor, one tensor in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gguf_ext.blocks import OFFSET, TensorType, decode
from gguf_ext.errors import GGUFError
from gguf_ext.header import TensorInfo
from gguf_ext.parts import MAGIC
from gguf_ext.reader import GGUFFile
from sqft_plugins.grid import QuantizedWeight, int4_weight
from sqft_plugins.inspect.model import inspect_layer
from sqft_plugins.inspect.report import Row, count, total_of
from sqft_plugins.mask import Pattern
from sqft_plugins.pattern import PATTERNS
from sqft_plugins.progress import track

LAYER = "blk."
"""How the names of the blocks' tensors begin; matrices among them are the layers, as in a model folder."""
STAMP = {"pipeline": list, "sparsity": float, "mask_hash": str, "scale_hash": str, "base": str, "version": str}
STAMP |= {"exact": bool, "largest_error": float}
"""`sqft.*` keys that are shown, and what they hold."""


class GGUFWeights:
    """The matrices of a file, a `WeightSource`: a module is called as its tensor, and no file has masks."""

    def __init__(self, file: GGUFFile):
        self.file, self.path = file, file.path

    def weight_shape(self, module: str) -> tuple[int, int]:
        *rows, columns = self.file.tensors[module].shape  # experts are one tensor [experts, out, in]
        return math.prod(rows), columns

    def module_bytes(self, module: str) -> int:
        return self.file.raw(module).nbytes

    def is_quantized(self, module: str) -> bool:
        """Whether it is of a type that holds codes of an INT4 grid: Q4_0 or Q5_0."""
        return self.file.tensors[module].type in set(OFFSET)

    def weight(self, module: str) -> Tensor:
        return torch.from_numpy(self.file.dequantize(module)).reshape(self.weight_shape(module))

    def quantized(self, module: str) -> QuantizedWeight:
        """Codes 0..15 of Q4_0, 0..31 of Q5_0; a scale for each block of 32."""
        kind = self.file.kind(module)
        steps, d = decode(self.file.raw(module), kind)
        scale, zero = torch.from_numpy(d.astype(np.float32)), OFFSET[kind]
        codes = torch.from_numpy(steps + np.int8(zero)).view(torch.uint8)
        return int4_weight(codes, scale, torch.full_like(scale, zero, dtype=torch.uint8))

    def mask(self, module: str) -> None:
        return None


class GGUFInspector:
    """Any GGUF file. Types that this package does not write are decoded by the gguf package."""

    name = "gguf"

    def opens(self, path: Path) -> bool:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return path.suffix == ".gguf" or file.read(len(MAGIC)) == MAGIC

    def inspect(self, path: Path, patterns: Sequence[Pattern] = PATTERNS) -> dict[str, Any]:
        return inspect_gguf(path, patterns)


def inspect_gguf(path: str | Path, patterns: Sequence[Pattern] = PATTERNS) -> dict[str, Any]:
    """The report of a file in the layout of `sqft_plugins.inspect.inspect_model`, with kind "gguf", model_type
    llama.cpp's architecture, and stamp and grid from the `sqft.*` metadata (None where it has none).

    layers: the matrices of the blocks; dtype and gguf are the type in the file, codes (of Q4_0: 16, of Q5_0: 32, the
    code of zero in the middle) and scale (of the blocks) only of these two types. No mask is in the file: pruned,
    violations and kept_zero are None. other: name, shape, dtype and bytes of the remaining tensors, from the header.

    A file in parts is given by its first. Raises DamagedFileError for a file that is cut off, GGUFError for a type that
    nobody decodes, DependencyError where a type needs the gguf package and it is not installed.
    """
    file = GGUFFile(path)
    layers: list[Row] = []
    other: list[Row] = []

    for info in track(list(file.tensors.values()), "inspect"):
        if info.name.startswith(LAYER) and len(info.shape) > 1 and 0 not in info.shape:
            layers.append(_layer(file, info, patterns))
        else:
            row = {"name": info.name, "shape": list(info.shape), "dtype": info.type_name}
            other.append({**row, "bytes": file.raw(info.name).nbytes})
    if not layers:
        raise GGUFError(f"{path} has no matrices called {LAYER}*: it holds no decoder model, give another file")

    sqft = {key: _entry(file, key, kind) for key, kind in STAMP.items()}
    group_size, symmetric = _entry(file, "group_size", int), _entry(file, "symmetric", bool)
    return {
        "path": str(path),
        "kind": "gguf",
        "model_type": str(file.metadata.get("general.architecture")),
        "bytes": file.bytes,
        "stamp": {key: value for key, value in sqft.items() if value is not None} if sqft["pipeline"] else None,
        "mask_is_the_stamps": None,
        "grid": None if group_size is None else {"bits": 4, "group_size": group_size, "symmetric": symmetric},
        "total": total_of(layers),
        "layers": layers,
        "other": other,
        "other_dtypes": count(row["dtype"] for row in other),
    }


def _layer(file: GGUFFile, info: TensorInfo, patterns: Sequence[Pattern]) -> Row:
    row = inspect_layer(GGUFWeights(file), info.name, patterns)
    row |= {"shape": list(info.shape), "dtype": info.type_name, "gguf": info.type_name, "gguf_exact": True}
    if "codes" in row:
        row["codes"] += [0] * (2 * OFFSET[TensorType(info.type)] - len(row["codes"]))  # as many as the type has
    return row


def _entry(file: GGUFFile, key: str, kind: type) -> Any:
    """The entry `sqft.<key>`; None where there is none, or it is of another type than we write."""
    value = file.metadata.get(f"sqft.{key}")
    if isinstance(value, list):
        value = [str(item) for item in value]
    return value if isinstance(value, kind) else None
