"""`sqft inspect FILE.gguf`: types, zeros, codes and scales of every tensor, one tensor in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gguf_ext.blocks import BLOCK_BYTES, OFFSET, TensorType, decode, dequantize, row_bytes
from gguf_ext.errors import DamagedFileError, GGUFError, missing_package
from gguf_ext.reader import MAGIC, GGUFFile, TensorInfo
from sqft_plugins.inspect.report import PATTERNS, Row, count, total_of, zeros_of
from sqft_plugins.mask import Pattern
from sqft_plugins.progress import track

LAYER = "blk."
"""How the names of the blocks' tensors begin; matrices among them are the layers, as in a model folder."""
STAMP = ("pipeline", "sparsity", "mask_hash", "scale_hash", "base", "version")


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

    Raises DamagedFileError for a file that is cut off, GGUFError for a type that nobody decodes, DependencyError where
    a type needs the gguf package and it is not installed.
    """
    file = GGUFFile(path)
    layers: list[Row] = []
    other: list[Row] = []
    for info in track(list(file.tensors.values()), "inspect"):
        if info.name.startswith(LAYER) and len(info.shape) > 1 and 0 not in info.shape:
            layers.append(_layer(file, info, patterns))
        else:
            row = {"name": info.name, "shape": list(info.shape), "dtype": info.type_name}
            other.append({**row, "bytes": _bytes(file, info)})
    if not layers:
        raise GGUFError(f"{path} has no matrices called {LAYER}*: it holds no decoder model, give another file")
    sqft = {key: file.metadata.get(f"sqft.{key}") for key in STAMP}
    group_size, symmetric = (file.metadata.get(f"sqft.{key}") for key in ("group_size", "symmetric"))
    return {
        "path": str(path),
        "kind": "gguf",
        "model_type": file.metadata.get("general.architecture"),
        "bytes": file.path.stat().st_size,
        "stamp": {key: value for key, value in sqft.items() if value is not None} if sqft["pipeline"] else None,
        "mask_is_the_stamps": None,
        "grid": None if group_size is None else {"bits": 4, "group_size": group_size, "symmetric": symmetric},
        "total": total_of(layers),
        "layers": layers,
        "other": other,
        "other_dtypes": count(row["dtype"] for row in other),
    }


def _layer(file: GGUFFile, info: TensorInfo, patterns: Sequence[Pattern]) -> Row:
    size = _bytes(file, info)
    weight = torch.from_numpy(_weights(file, info)).reshape(-1, info.shape[-1])  # [out, in]
    row: Row = {
        "name": info.name,
        "shape": list(info.shape),
        "dtype": info.type_name,
        **zeros_of(weight, patterns),
        **dict.fromkeys(("pruned", "violations", "kept_zero")),
        "bits_per_weight": 8 * size / weight.numel(),
        "gguf": info.type_name,
        "gguf_exact": True,
    }
    if info.type in set(BLOCK_BYTES):
        kind = TensorType(info.type)
        steps, d = decode(file.raw(info.name), kind)
        row["codes"] = np.bincount(steps.ravel() + OFFSET[kind], minlength=2 * OFFSET[kind]).tolist()
        row["scale"] = [float(d.min()), float(d.max())]
    return row


def _weights(file: GGUFFile, info: TensorInfo) -> NDArray[np.float32]:
    if info.type in set(TensorType):
        return dequantize(file.raw(info.name), TensorType(info.type))
    gguf = _package()
    data = np.memmap(file.path, np.uint8, "r", info.offset, (math.prod(info.shape[:-1]), _row_bytes(file, info)))
    try:
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(info.type)).astype(np.float32, copy=False)
    except NotImplementedError as error:
        raise GGUFError(
            f"{file.path}: tensor {info.name} is {info.type_name}, which the installed gguf cannot decode: "
            "upgrade it, or give another file"
        ) from error


def _bytes(file: GGUFFile, info: TensorInfo) -> int:
    size = math.prod(info.shape[:-1]) * _row_bytes(file, info)
    if info.offset + size > file.path.stat().st_size:
        raise DamagedFileError(f"{file.path} is cut off within tensor {info.name}: copy or export it again")
    return size


def _row_bytes(file: GGUFFile, info: TensorInfo) -> int:
    if info.type in set(TensorType):
        return row_bytes(info.shape[-1], TensorType(info.type))
    gguf = _package()
    try:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(info.type)]
    except (ValueError, KeyError) as error:
        raise GGUFError(
            f"{file.path}: tensor {info.name} has the type {info.type}, which the installed gguf does not know: "
            "upgrade it, or give another file"
        ) from error
    return -(-info.shape[-1] // block) * size


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise missing_package("gguf") from error
    return gguf
