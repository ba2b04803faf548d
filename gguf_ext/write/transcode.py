"""A weight of the model → the type and the raw bytes it gets in the file, nothing lost.

INT4 weights become Q4_0 where all `code - zero_point` of the tensor are within -8..7, else Q5_0; never Q4_1, whose fp16
minimum breaks the zero of every second pruned weight. Vectors are F32. Other float matrices get the narrowest type in
which every value is exact: F16, else BF16, else F32. What is rounded is rounded because the user asked for it, and the
largest error is reported.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gguf_ext.blocks import BLOCK, TensorType, dequantize, encode, row_bytes
from gguf_ext.errors import (
    BlockSizeError,
    GGUFError,
    NonFiniteWeightError,
    ScaleNotExactError,
    ScaleRangeError,
)
from gguf_ext.gguf_package import require_gguf
from sqft_plugins.grid import QuantizedWeight

FLOAT_TYPES = {"f32": TensorType.F32, "f16": TensorType.F16, "bf16": TensorType.BF16}
EMBEDDING_TYPES = {**FLOAT_TYPES, "q8_0": TensorType.Q8_0}
TORCH_TYPES = {TensorType.F32: torch.float32, TensorType.F16: torch.float16, TensorType.BF16: torch.bfloat16}
FP16_MAX = 65504.0
LARGEST = {TensorType.F16: FP16_MAX, TensorType.Q8_0: 127 * FP16_MAX}
"""The largest weight that a type holds, where that is less than float32's."""
CHUNK = 1 << 24
"""Weights looked at in one go, so that float32 copies stay small beside the tensor."""


def row_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows with at most `CHUNK` weights each; a vector is one slice."""
    rows = shape[0]
    step = rows if len(shape) == 1 else max(1, CHUNK // max(1, shape[1]))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


# --- INT4 ---


def block_type(weight: QuantizedWeight, name: str, rounding: str = "refuse") -> TensorType:
    """Q4_0 or Q5_0. Raises BlockSizeError, ScaleRangeError, ScaleNotExactError, NonFiniteWeightError, naming `name`."""
    columns = weight.codes.shape[1]
    if weight.group_size % BLOCK:
        raise BlockSizeError(
            f"{name}: in={columns} in groups of {weight.group_size} does not fit blocks of {BLOCK}: "
            f"quantize with a group size of 32, 64 or 128, or leave the layer float"
        )
    check_scale(weight.scale, name, rounding)
    return TensorType.Q4_0 if weight.fits_signed() else TensorType.Q5_0


def check_scale(scale: Tensor, name: str, rounding: str = "refuse") -> None:
    """Raises unless every scale is a number that fp16 holds: exactly, or, with rounding "allow", as another number than
    0. A pruned weight stays 0 with any such scale."""
    if not bool(torch.isfinite(scale).all()):
        raise NonFiniteWeightError(f"{name}: scale is NaN or infinite: quantize the model again")

    largest = float(scale.abs().max())
    if largest > FP16_MAX:
        raise ScaleRangeError(
            f"{name}: scale={largest:g} is above {FP16_MAX:g}, where fp16 ends: quantize the model again with sqft"
        )

    stored = scale.to(torch.float16).to(scale.dtype)
    wrong = scale != stored
    if rounding == "allow":
        if bool((lost := (stored == 0) & wrong).any()):
            raise ScaleRangeError(
                f"{name}: scale={float(scale[lost][0]):g} is below 2^-25, where fp16 ends: quantize the model again"
            )
    elif bool(wrong.any()):
        example = float(scale[wrong][0])
        raise ScaleNotExactError(
            f"{name}: scale={example!r} and {int(wrong.sum()) - 1} more are not exact in fp16: quantize again with "
            f"`sqft quantize`, whose scales have 8 significant bits, or round them with --rounding allow"
        )


def block_bytes(weight: QuantizedWeight, kind: TensorType) -> NDArray[np.uint8]:
    """uint8 [out, row_bytes]; `kind` as `block_type` gave it."""
    return encode(weight.steps().numpy(), weight.scale.to(torch.float16).numpy(), kind)


def stored_steps(weight: QuantizedWeight) -> QuantizedWeight:
    """What Q4_0 and Q5_0 hold of an INT4 weight: its scales in fp16."""
    return weight._replace(scale=weight.scale.to(torch.float16).to(torch.float32))


def step_error(weight: QuantizedWeight) -> float:
    """The largest |difference| that rounding the scales makes; 0 where all are exact in fp16."""
    inexact = (stored_steps(weight).scale != weight.scale).any(1)
    part = QuantizedWeight(*(piece[inexact] for piece in weight))
    return float((stored_steps(part).dequantize() - part.dequantize()).abs().max()) if bool(inexact.any()) else 0.0


# --- float ---


def matrix_type(tensor: Tensor, name: str, float_type: str = "auto", argument: str = "--float-type") -> TensorType:
    """The type of a float tensor: F32 for a vector. Raises NonFiniteWeightError, BlockSizeError, GGUFError for a dtype
    that no type holds."""
    if tensor.dtype not in TORCH_TYPES.values():
        raise GGUFError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}: save the model in float32 or narrower")

    wanted = EMBEDDING_TYPES.get(float_type)
    candidates = [TensorType.F16, TensorType.BF16] if wanted is None else [wanted]
    if tensor.ndim == 1:
        candidates = [TensorType.F32]

    for rows in row_slices(tuple(tensor.shape)):
        part = tensor[rows]
        if not bool(torch.isfinite(part).all()):
            raise NonFiniteWeightError(f"{name}: weight holds NaN or infinity: repair the model, see `sqft inspect`")
        if wanted is not None and tensor.ndim > 1:
            row_bytes(part.shape[-1], wanted)
            largest = LARGEST.get(wanted)
            if largest is not None and float(part.abs().max()) > largest:
                raise NonFiniteWeightError(
                    f"{name}: a weight is above {largest:g}, where {wanted.name} ends: use {argument} bf16 or auto"
                )
        elif tensor.ndim > 1:
            candidates = [kind for kind in candidates if _exact(part, kind)]

    return candidates[0] if candidates else TensorType.F32


def float_bytes(tensor: Tensor, kind: TensorType) -> NDArray[np.uint8]:
    """uint8 [out, row_bytes], or [1, bytes] for a vector; rounded to nearest where `kind` is not exact."""
    if kind is TensorType.Q8_0:
        gguf = require_gguf()
        q8_0 = gguf.GGMLQuantizationType.Q8_0
        blocks: NDArray[np.uint8] = gguf.quants.quantize(tensor.to(torch.float32).numpy(), q8_0)
        return blocks
    rows = tensor.shape[0] if tensor.ndim > 1 else 1
    return tensor.to(TORCH_TYPES[kind]).contiguous().view(torch.uint8).reshape(rows, -1).numpy()


def stored_floats(part: Tensor, kind: TensorType) -> Tensor:
    """float32: what a file holds of some rows (or a vector) as `kind`."""
    if kind is TensorType.Q8_0:
        return torch.from_numpy(dequantize(float_bytes(part, kind), kind))
    return part.to(TORCH_TYPES[kind]).to(torch.float32)


def float_error(tensor: Tensor, kind: TensorType) -> float:
    """The largest |difference| that storing a float tensor as `kind` makes."""
    if tensor.dtype == TORCH_TYPES.get(kind) or kind is TensorType.F32:
        return 0.0
    pieces = (tensor[rows] for rows in row_slices(tuple(tensor.shape)))
    return max(
        (float((stored_floats(part, kind) - part.to(torch.float32)).abs().max()) for part in pieces), default=0.0
    )


def _exact(part: Tensor, kind: TensorType) -> bool:
    dtype = TORCH_TYPES[kind]
    return part.dtype == dtype or torch.equal(part.to(dtype).to(torch.float32), part.to(torch.float32))
