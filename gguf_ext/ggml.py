"""ggml's own conversions between floats and blocks, which llama.cpp computes with: by ctypes, from the library that
llama-cpp-python brings."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_ext.errors import GGUFError, RuntimeFailedError, missing_package


class Traits(ctypes.Structure):
    """The beginning of `struct ggml_type_traits` (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@cache
def ggml() -> Any:
    """The library `ggml-base`. Raises DependencyError without llama-cpp-python, RuntimeFailedError without a library in
    it."""
    try:
        import llama_cpp
    except ImportError as error:
        raise missing_package("llama-cpp-python") from error
    folder = Path(str(llama_cpp.__file__)).parent / "lib"
    file = next(iter(sorted(folder.glob("*ggml-base.*"))), None)
    if file is None:
        raise RuntimeFailedError(f"llama-cpp-python has no ggml-base in {folder}: install it again")

    library = ctypes.CDLL(str(file))
    library.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return library


def to_float(raw: NDArray[np.uint8], number: int, weights: int, size: int) -> NDArray[np.float32]:
    """What llama.cpp makes of raw rows of a type: uint8 [rows, row_bytes] → float32 [rows, in].

    number: of the type in ggml. weights, size: of a block, as the caller knows them. Raises GGUFError where ggml has
    another block of that type, or none, and for rows that are no blocks.
    """
    traits = _traits(number, weights, size)
    rows, width = raw.shape
    if width % size:
        raise GGUFError(f"rows of {width} bytes are no blocks of {size}: give whole rows")
    raw = np.ascontiguousarray(raw)
    out = np.empty((rows, width // size * weights), np.float32)
    traits.to_float(raw.ctypes.data, out.ctypes.data, out.size)
    return out


def quantize(
    weight: NDArray[np.float32], number: int, weights: int, size: int, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """What llama.cpp's quantizer makes of float32 [rows, in] → raw rows uint8 [rows, row_bytes].

    number, weights, size: as for `to_float`.
    importance: float32 [in], as an importance matrix has it: the mean square of each input.

    Raises GGUFError as `to_float` does, for a type that needs an importance matrix and gets none, and for weights that
    are not finite, which ggml does not look at.
    """
    _traits(number, weights, size)
    rows, columns = weight.shape
    if columns % weights:
        raise GGUFError(f"in={columns} is not a multiple of {weights}: ggml's type {number} cannot hold it")
    if importance is None and ggml().ggml_quantize_requires_imatrix(number):
        raise GGUFError(
            f"ggml's type {number} needs an importance matrix: give calibration texts, or take another type"
        )
    if importance is not None and importance.shape != (columns,):
        raise GGUFError(f"importance of shape {importance.shape} is not one number for each of {columns} inputs")
    if not np.isfinite(weight).all() or not (importance is None or np.isfinite(importance).all()):
        raise GGUFError("weight or importance holds NaN or infinity: repair the model, see `sqft inspect`")

    weight = np.ascontiguousarray(weight, np.float32)
    matrix = None if importance is None else np.ascontiguousarray(importance, np.float32)
    out = np.empty((rows, columns // weights * size), np.uint8)
    ggml().ggml_quantize_chunk(
        ctypes.c_int(number),
        ctypes.c_void_p(weight.ctypes.data),
        ctypes.c_void_p(out.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(rows),
        ctypes.c_int64(columns),
        ctypes.c_void_p(None if matrix is None else matrix.ctypes.data),
    )
    return out


def _traits(number: int, weights: int, size: int) -> Traits:
    """What ggml says of a type. Its functions look at no size, so a block of another size would be written beyond the
    end of memory."""
    traits: Traits = ggml().ggml_get_type_traits(ctypes.c_int(number)).contents
    if (traits.blck_size, traits.type_size) != (weights, size):
        raise GGUFError(
            f"ggml's type {number} has {traits.blck_size} weights in {traits.type_size} bytes, not {weights} in "
            f"{size}: the installed llama.cpp does not know it, or has another type there, upgrade it"
        )
    return traits
