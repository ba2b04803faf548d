"""A weight of the model → the type and the raw bytes it gets in the file, nothing lost.

INT4 weights become Q4_0 where all `code - zero_point` of the tensor are within -8..7, else Q5_0; never Q4_1, whose fp16
minimum breaks the zero of every second pruned weight. Vectors are F32. Other float matrices get the narrowest type in
which every value is exact: F16, else BF16, else F32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gguf_ext.blocks import BLOCK, TensorType, encode
from gguf_ext.errors import BlockSizeError, GGUFError, NonFiniteWeightError, ScaleNotExactError, ScaleRangeError
from sqft_plugins.errors import nearest
from sqft_plugins.grid import QuantizedWeight

FloatType = Literal["auto", "f32", "f16", "bf16"]
"""What matrices that are not INT4 become: the narrowest exact type, or this one, rounded where it must be."""

FLOAT_TYPES = {"f32": TensorType.F32, "f16": TensorType.F16, "bf16": TensorType.BF16}
TORCH_TYPES = {TensorType.F32: torch.float32, TensorType.F16: torch.float16, TensorType.BF16: torch.bfloat16}
FP16_MAX = 65504.0
CHUNK = 1 << 24
"""Weights looked at in one go, so that float32 copies stay small beside the tensor."""


def check_float_type(float_type: str) -> None:
    """Raises GGUFError for a float type that is none."""
    if float_type not in ("auto", *FLOAT_TYPES):
        raise GGUFError(f"float_type={float_type!r} is unknown: {nearest(float_type, ['auto', *FLOAT_TYPES])}")


def row_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows with at most `CHUNK` weights each; a vector is one slice."""
    rows = shape[0]
    step = rows if len(shape) == 1 else max(1, CHUNK // max(1, shape[1]))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


# --- INT4 ---


def block_type(weight: QuantizedWeight, name: str) -> TensorType:
    """Q4_0 or Q5_0. Raises BlockSizeError, ScaleRangeError, ScaleNotExactError, NonFiniteWeightError, naming `name`."""
    columns, groups = weight.codes.shape[1], weight.scale.shape[1]
    if columns % BLOCK or (columns // groups) % BLOCK:
        raise BlockSizeError(
            f"{name}: in={columns} in groups of {columns // groups} does not fit blocks of {BLOCK}: "
            f"quantize with a group size of 32, 64 or 128, or leave the layer float"
        )
    check_scale(weight.scale, name)
    return TensorType.Q4_0 if weight.fits_signed() else TensorType.Q5_0


def check_scale(scale: Tensor, name: str) -> None:
    """Raises unless every scale is a number that fp16 holds exactly. A pruned weight stays 0 with any such scale."""
    if not bool(torch.isfinite(scale).all()):
        raise NonFiniteWeightError(f"{name}: scale is NaN or infinite: quantize the model again")
    largest = float(scale.abs().max())
    if largest > FP16_MAX:
        raise ScaleRangeError(
            f"{name}: scale={largest:g} is above {FP16_MAX:g}, where fp16 ends: quantize the model again with sqft"
        )
    wrong = scale != scale.to(torch.float16).to(scale.dtype)
    if bool(wrong.any()):
        example = float(scale[wrong][0])
        raise ScaleNotExactError(
            f"{name}: scale={example!r} and {int(wrong.sum()) - 1} more are not exact in fp16: quantize again with "
            f"`sqft quantize`, whose scales have 8 significant bits"
        )


def block_bytes(weight: QuantizedWeight, kind: TensorType) -> NDArray[np.uint8]:
    """uint8 [out, row_bytes]; `kind` as `block_type` gave it."""
    return encode(weight.steps().numpy(), weight.scale.to(torch.float16).numpy(), kind)


# --- float ---


def matrix_type(tensor: Tensor, name: str, float_type: str = "auto") -> TensorType:
    """The type of a float tensor: F32 for a vector. Raises NonFiniteWeightError."""
    wanted = FLOAT_TYPES.get(float_type)
    candidates = [TensorType.F16, TensorType.BF16] if wanted is None else [wanted]
    if tensor.ndim == 1:
        candidates = [TensorType.F32]
    for rows in row_slices(tuple(tensor.shape)):
        part = tensor[rows]
        if not bool(torch.isfinite(part).all()):
            raise NonFiniteWeightError(f"{name}: weight holds NaN or infinity: repair the model, see `sqft inspect`")
        if (
            candidates == [TensorType.F16]
            and wanted is not None
            and not bool(torch.isfinite(part.to(torch.float16)).all())
        ):
            raise NonFiniteWeightError(
                f"{name}: a weight is above 65504, where fp16 ends: use --float-type bf16 or auto"
            )
        if wanted is None and tensor.ndim > 1:
            candidates = [kind for kind in candidates if _exact(part, kind)]
    return candidates[0] if candidates else TensorType.F32


def float_bytes(tensor: Tensor, kind: TensorType) -> NDArray[np.uint8]:
    """uint8 [out, row_bytes], or [1, bytes] for a vector; rounded to nearest where `kind` is not exact."""
    rows = tensor.shape[0] if tensor.ndim > 1 else 1
    return tensor.to(TORCH_TYPES[kind]).contiguous().view(torch.uint8).reshape(rows, -1).numpy()


def _exact(part: Tensor, kind: TensorType) -> bool:
    dtype = TORCH_TYPES[kind]
    return part.dtype == dtype or torch.equal(part.to(dtype).to(torch.float32), part.to(torch.float32))
