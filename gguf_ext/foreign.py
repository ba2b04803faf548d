"""Tensors of types that this package does not write, decoded by the gguf package."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_ext.blocks import TensorType, dequantize, row_bytes
from gguf_ext.errors import DamagedFileError, GGUFError
from gguf_ext.reader import GGUFFile, TensorInfo
from gguf_ext.write.transcode import require_gguf


def weights(file: GGUFFile, info: TensorInfo, rows: Any = slice(None)) -> NDArray[np.float32]:
    """float32 [rows, in] of a tensor of any type, [1, n] of a vector. Raises DamagedFileError for one that is cut off,
    GGUFError for a type that nobody decodes, DependencyError where it needs the gguf package."""
    data = file.mapped(info, bytes_of_row(file, info))[rows]
    if info.type in set(TensorType):
        return dequantize(data, TensorType(info.type))
    gguf = require_gguf()
    try:
        kind = gguf.GGMLQuantizationType(info.type)
        return gguf.quants.dequantize(np.ascontiguousarray(data), kind).astype(np.float32, copy=False)
    except NotImplementedError as error:
        raise GGUFError(
            f"{file.path}: tensor {info.name} is {info.type_name}, which the installed gguf cannot decode: "
            "upgrade it, or give another file"
        ) from error


def bytes_of(file: GGUFFile, info: TensorInfo) -> int:
    """Bytes of a tensor in the file."""
    width = bytes_of_row(file, info)
    file.mapped(info, width)
    return math.prod(info.shape[:-1]) * width


def bytes_of_row(file: GGUFFile, info: TensorInfo) -> int:
    if info.type in set(TensorType):
        return row_bytes(info.shape[-1], TensorType(info.type))
    gguf = require_gguf()
    try:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(info.type)]
    except (ValueError, KeyError) as error:
        raise GGUFError(
            f"{file.path}: tensor {info.name} has the type {info.type}, which the installed gguf does not know: "
            "upgrade it, or give another file"
        ) from error
    if info.shape[-1] % block:
        raise DamagedFileError(
            f"{file.path}: tensor {info.name} of shape {info.shape} does not fit blocks of {block}: export it again"
        )
    return info.shape[-1] // block * size
