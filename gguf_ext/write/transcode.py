"""A weight of the model → the type and the raw bytes it gets in the file, nothing lost.

Integer weights become Q4_0 where all `code - zero_point` of the tensor are within -8..7, Q5_0 within -16..15, Q8_0
within -128..127; never Q4_1, whose fp16 minimum breaks the zero of every second pruned weight. Vectors are F32. Other
float matrices get the narrowest type in which every value is exact: F16, else BF16, else F32. What is rounded is
rounded because the user asked for it, and the largest error is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

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
from sqft_plugins.inspect.model import GGUF_STEPS

FLOAT_TYPES = {"f32": TensorType.F32, "f16": TensorType.F16, "bf16": TensorType.BF16}
EMBEDDING_TYPES = {**FLOAT_TYPES, "q8_0": TensorType.Q8_0}
TORCH_TYPES = {TensorType.F32: torch.float32, TensorType.F16: torch.float16, TensorType.BF16: torch.bfloat16}
STEP_BITS = {TensorType[name]: bits for name, bits in GGUF_STEPS.items()}
"""The types for integer weights, the narrowest first → the bits of the signed steps that they hold."""
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
    """Q4_0, Q5_0 or Q8_0. Raises BlockSizeError, ScaleRangeError, ScaleNotExactError, NonFiniteWeightError and, for
    steps that none of them holds, GGUFError, naming `name`."""
    columns = weight.codes.shape[1]
    if weight.group_size % BLOCK:
        raise BlockSizeError(
            f"{name}: in={columns} in groups of {weight.group_size} does not fit blocks of {BLOCK}: "
            f"quantize with a group size of 32, 64 or 128, or leave the layer float"
        )
    check_scale(weight.scale, name, rounding)
    kind = next((kind for kind, bits in STEP_BITS.items() if weight.fits_signed(bits)), None)
    if kind is None:
        raise GGUFError(
            f"{name}: {weight.grid.kind.name} has steps outside -128..127, the range of Q8_0: quantize without "
            "--asymmetric, or quantize the float model again (`sqft quantize --grid q8_0`)"
        )
    return kind


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


# --- float ---


def matrix_type(tensor: Tensor, name: str, float_type: str = "auto", argument: str = "--float-type") -> TensorType:
    """The type of a float tensor: F32 for a vector. Raises NonFiniteWeightError, BlockSizeError, GGUFError for a dtype
    that no type holds."""
    if tensor.dtype not in TORCH_TYPES.values():
        raise GGUFError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}: save the model in float32 or narrower")

    wanted = TensorType.F32 if tensor.ndim == 1 else EMBEDDING_TYPES.get(float_type)
    candidates = [TensorType.F16, TensorType.BF16, TensorType.F32] if wanted is None else [wanted]
    if wanted is not None:
        row_bytes(tensor.shape[-1], wanted)  # raises where blocks do not fit

    for rows in row_slices(tuple(tensor.shape)):
        part = tensor[rows]
        if not bool(torch.isfinite(part).all()):
            raise NonFiniteWeightError(f"{name}: weight holds NaN or infinity: repair the model, see `sqft inspect`")
        if wanted in LARGEST and float(part.abs().max()) > LARGEST[wanted]:
            raise NonFiniteWeightError(
                f"{name}: a weight is above {LARGEST[wanted]:g}, where {wanted.name} ends: use {argument} bf16 or auto"
            )
        if wanted is None:
            candidates = [kind for kind in candidates if _exact(part, kind)]

    return candidates[0]


def float_bytes(tensor: Tensor, kind: TensorType) -> NDArray[np.uint8]:
    """uint8 [out, row_bytes], or [1, bytes] for a vector; rounded to nearest where `kind` is not exact."""
    if kind is TensorType.Q8_0:
        gguf = require_gguf()
        q8_0 = gguf.GGMLQuantizationType.Q8_0
        blocks: NDArray[np.uint8] = gguf.quants.quantize(tensor.to(torch.float32).numpy(), q8_0)
        return blocks
    rows = tensor.shape[0] if tensor.ndim > 1 else 1
    return tensor.to(TORCH_TYPES[kind]).contiguous().view(torch.uint8).reshape(rows, -1).numpy()


def _exact(part: Tensor, kind: TensorType) -> bool:
    return _holds_all(kind, part.dtype) or torch.equal(
        part.to(TORCH_TYPES[kind]).to(torch.float32), part.to(torch.float32)
    )


def _holds_all(kind: TensorType, dtype: torch.dtype) -> bool:
    """Whether the type holds every number of the dtype, so that none need be looked at."""
    return kind is TensorType.F32 or dtype == TORCH_TYPES.get(kind)


# --- both ---


def shape_of(weight: Tensor | QuantizedWeight) -> tuple[int, ...]:
    """[out, in], or [n] of a vector."""
    return tuple(weight.codes.shape if isinstance(weight, QuantizedWeight) else weight.shape)


def stored(weight: Tensor | QuantizedWeight, kind: TensorType, rows: slice) -> tuple[Tensor, Tensor]:
    """Some rows (or a vector), float32: the numbers of the model, and what a file holds of them as `kind`. Both are the
    same object where the type rounds nothing."""
    if isinstance(weight, QuantizedWeight):
        part = weight.take(rows)
        exact, scale = part.dequantize(), part.scale.to(torch.float16).to(torch.float32)
        if kind not in STEP_BITS or torch.equal(scale, part.scale):
            return exact, exact
        return exact, part._replace(grid=replace(part.grid, scale=scale)).dequantize()

    floats = weight[rows]
    exact = floats.to(torch.float32)
    if kind.holds_steps or _holds_all(kind, floats.dtype):  # floats on steps are other numbers, not rounded ones
        return exact, exact
    if kind is TensorType.Q8_0:
        held = torch.from_numpy(dequantize(float_bytes(floats, kind), kind))
    else:
        held = floats.to(TORCH_TYPES[kind]).to(torch.float32)
    same = torch.equal(held.view(torch.int32), exact.view(torch.int32))  # Q8_0 has no -0
    return exact, exact if same else held


def rounding_error(weight: Tensor | QuantizedWeight, kind: TensorType) -> float:
    """The largest |difference| that storing a weight as `kind` makes."""
    pairs = (stored(weight, kind, rows) for rows in row_slices(shape_of(weight)))
    return max((largest_gap(exact, held) for exact, held in pairs if held is not exact), default=0.0)


def largest_gap(one: Tensor, other: Tensor) -> float:
    """The largest |difference|; infinite where one is no number."""
    gap = float((one - other).abs().max())
    return math.inf if math.isnan(gap) else gap
