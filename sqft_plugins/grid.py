"""The INT4 grid: the one definition of scales, codes and packing.

Training, merging, checkpoints, vLLM and GGUF all call this module, so that they agree to the bit.

A quantized weight is `W[out, in] = scale[out, groups] * (codes[out, in] - zero_point[out, groups])`, with `codes` and
`zero_point` unsigned, 0..15, and `groups = in / group_size`. A pruned weight has `code == zero_point`, so it is
exactly 0 (SQFT, arXiv 2410.03750, section 3).

Scales are rounded when they are made: 8 significant bits, at least 2^-17 and at most 65504. Such a number is exact in
bf16 (8 significant bits), in fp16 (its subnormals have a spacing of 2^-24, so 2^-17 still has 8 bits) and in fp32, so
every surface reads the same one. `scale * (code - zero_point)` needs 8 + 4 bits: exact in fp32, rounded in bf16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sqft_plugins.errors import GridError
from sqft_plugins.mask import lost_zeros

BITS = 4
MAX_CODE = 15
SYMMETRIC_ZERO_POINT = 8
MIN_SCALE = 2.0**-17
MAX_SCALE = 65504.0
SCALE_BITS = 8
GROUP_SIZES = (32, 64, 128)
PER_CHANNEL = -1
"""The `group_size` that makes one group of a whole row."""


class QuantizedWeight(NamedTuple):
    """One weight on the grid.

    codes: uint8 [out, in], 0..15. scale: float32 [out, groups], 8 significant bits. zero_point: uint8 [out, groups].
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in]; exact in float32 and float64."""
        return dequantize(self.codes, self.scale, self.zero_point, dtype=dtype)

    @property
    def group_size(self) -> int:
        """The columns that share one scale; `in` where there is one group for the whole row."""
        return self.codes.shape[1] // self.scale.shape[1]

    def steps(self) -> Tensor:
        """`codes - zero_point`, int8 [out, in], -15..15; 0 is an exact zero."""
        return steps(self.codes, self.zero_point)

    def lost_zeros(self, mask: Tensor) -> int:
        """How many of the weights that `mask` (bool [out, in], True = kept) prunes are not exactly 0."""
        return lost_zeros(self.steps(), mask)

    def fits_signed(self) -> bool:
        """Whether every step lies in -8..7, the range of a signed 4-bit number (GGUF's Q4_0)."""
        steps = self.steps()
        return int(steps.min()) >= -SYMMETRIC_ZERO_POINT and int(steps.max()) <= MAX_CODE - SYMMETRIC_ZERO_POINT


def steps(codes: Tensor, zero_point: Tensor) -> Tensor:
    """`codes - zero_point` of codes [out, in] and zero_point [out, groups], both uint8 → int8 [out, in]."""
    grouped = codes.view(torch.int8).unflatten(1, (zero_point.shape[1], -1))  # 0..15: the same in int8
    return (grouped - zero_point.view(torch.int8).unsqueeze(-1)).flatten(1)


def zero_codes(zero_point: Tensor, in_features: int) -> Tensor:
    """The code of 0 at every place: zero_point [out, groups] → uint8 [out, in]."""
    return zero_point.repeat_interleave(in_features // zero_point.shape[1], dim=1)


def symmetric_zero_point(scale: Tensor) -> Tensor:
    """The zero point of a symmetric grid, 8 everywhere: uint8 of the shape of `scale`, on its device."""
    return torch.full_like(scale, SYMMETRIC_ZERO_POINT, dtype=torch.uint8)


def group_width(in_features: int, group_size: int, name: str = "weight") -> int:
    """The columns of one group. Raises GridError where `group_size` does not divide `in_features`."""
    if group_size == PER_CHANNEL:
        return in_features
    if group_size <= 0:
        raise GridError(f"group_size={group_size} is not a group: use 32, 64, 128 or -1 (per channel)")
    if in_features % group_size:
        raise GridError(
            f"group_size={group_size} does not divide in={in_features} of {name}: "
            f"use one of {[g for g in GROUP_SIZES if in_features % g == 0] + [PER_CHANNEL]}, or exclude the layer"
        )
    return group_size


def group_count(in_features: int, group_size: int, name: str = "weight") -> int:
    """The groups of one row. Raises GridError where `group_size` does not divide `in_features`."""
    return in_features // group_width(in_features, group_size, name)


def packed_words(count: int) -> int:
    """The int32 words that hold `count` codes, eight a word."""
    return -(-count // 8)


def round_scale(scale: Tensor) -> Tensor:
    """Rounds to 8 significant bits, half to even, and lifts to at least 2^-17 → float32, same shape.

    Raises GridError for a scale that is not finite or above 65504, where fp16 ends.
    """
    mantissa, exponent = torch.frexp(scale.to(torch.float64).abs())  # mantissa in [0.5, 1)
    rounded = torch.ldexp(torch.round(mantissa * 2**SCALE_BITS), exponent - SCALE_BITS)
    rounded = rounded.clamp(min=MIN_SCALE)
    if not bool((rounded <= MAX_SCALE).all()):  # also catches NaN
        raise GridError(
            f"scale={float(rounded.max()):g} is outside the exact range 2^-17..65504: rescale the weight or exclude it"
        )
    return rounded.to(torch.float32)


def make_scale(weight: Tensor, group_size: int = 32, symmetric: bool = True) -> tuple[Tensor, Tensor]:
    """The grid that covers `weight` [out, in], any float dtype → scale float32, zero_point uint8, both [out, groups].

    Symmetric: zero_point 8 and scale = max|w| / 7, so that no weight is clipped. (max|w| / 7.5 uses the lowest code too
    and has a little less squared error, but clips the largest weights, which costs more: docs/reference/formats.md.)
    Asymmetric: the range always contains 0, so that a pruned weight stays exactly representable. Raises GridError.
    """
    groups = _grouped(_as_exact(weight), group_size)  # [out, groups, group_size]
    if not bool(torch.isfinite(groups).all()):
        raise GridError(
            "weight holds NaN or infinity: find the broken tensor with `sqft inspect`, or exclude the layer"
        )
    if symmetric:
        scale = round_scale(groups.abs().amax(-1) / (MAX_CODE - SYMMETRIC_ZERO_POINT))
        return scale, symmetric_zero_point(scale)
    low = groups.amin(-1).clamp(max=0)
    high = groups.amax(-1).clamp(min=0)
    scale = round_scale((high - low) / MAX_CODE)
    zero_point = torch.round(-low / scale).clamp(0, MAX_CODE).to(torch.uint8)
    return scale, zero_point


def quantize(weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """`clamp(round(weight / scale) + zero_point, 0, 15)` → uint8 codes [out, in]; halves round to even.

    weight: [out, in], any float dtype; scale, zero_point: [out, groups]. An exact 0 gets the code `zero_point`.
    """
    groups = scale.shape[1]
    grouped = _as_exact(weight).unflatten(1, (groups, -1))  # [out, groups, group_size]
    steps = (grouped / scale.to(grouped.dtype).unsqueeze(-1)).round_()  # in place from here: training calls this often
    return steps.add_(zero_point.unsqueeze(-1)).clamp_(0, MAX_CODE).to(torch.uint8).flatten(1)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`scale * (codes - zero_point)` → [out, in] in `dtype`; computed, and exact, in float32."""
    groups = scale.shape[1]
    steps = codes.to(torch.float32).unflatten(1, (groups, -1)).sub_(zero_point.unsqueeze(-1))
    return steps.mul_(scale.to(torch.float32).unsqueeze(-1)).flatten(1).to(dtype)


def round_to_nearest(
    weight: Tensor, mask: Tensor | None = None, group_size: int = 32, symmetric: bool = True
) -> QuantizedWeight:
    """Round-to-nearest INT4 of `weight` [out, in] with the pruned weights (`mask` [out, in] False) kept at zero."""
    if mask is not None:
        weight = weight.masked_fill(~mask, 0)
    scale, zero_point = make_scale(weight, group_size, symmetric)
    return QuantizedWeight(quantize(weight, scale, zero_point), scale, zero_point)


def pack(codes: Tensor) -> Tensor:
    """uint8 codes [out, in] → int32 [out, ceil(in / 8)], eight codes a word, the first in the lowest bits.

    This is the layout of compressed-tensors' `pack-quantized`, packed by that library.
    """
    if codes.numel() and int(codes.max()) > MAX_CODE:
        raise GridError(f"code={int(codes.max())} is not an INT4 code: use 0..15")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32  # slow: brings transformers

    return pack_to_int32(codes.to(torch.int8) - SYMMETRIC_ZERO_POINT, BITS)


def unpack(packed: Tensor, in_features: int) -> Tensor:
    """The inverse of `pack`: int32 [out, ceil(in / 8)] → uint8 codes [out, in].

    Not by the library: reading a folder would wait seconds for transformers.
    """
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32, device=packed.device)
    codes = (packed.unsqueeze(-1) >> shifts) & MAX_CODE  # [out, words, 8]
    return codes.to(torch.uint8).flatten(1)[:, :in_features].contiguous()


def pack_zero_point(zero_point: Tensor) -> Tensor:
    """uint8 [out, groups] → int32 [ceil(out / 8), groups], packed along `out` as compressed-tensors does."""
    return pack(zero_point.t().contiguous()).t().contiguous()


def unpack_zero_point(packed: Tensor, out_features: int) -> Tensor:
    """The inverse of `pack_zero_point`: int32 [ceil(out / 8), groups] → uint8 [out, groups]."""
    return unpack(packed.t().contiguous(), out_features).t().contiguous()


def _as_exact(weight: Tensor) -> Tensor:
    # float64 stays, everything narrower is exact in float32
    return weight if weight.dtype == torch.float64 else weight.to(torch.float32)


def _grouped(weight: Tensor, group_size: int) -> Tensor:
    return weight.unflatten(1, (-1, group_width(weight.shape[1], group_size)))
