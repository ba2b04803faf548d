"""One sparse INT4 weight in its packed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sqft_plugins.errors import GridError, KernelError
from sqft_plugins.grid import (
    SYMMETRIC_ZERO_POINT,
    QuantizedWeight,
    group_count,
    int4_weight,
    require_int4,
    steps,
    symmetric_zero_point,
)
from sqft_plugins.kernels import layout, operators
from sqft_plugins.mask import lost_zeros, nonzero_mask


@dataclass(frozen=True, eq=False, repr=False)
class SparseInt4Weight:
    """A weight [out, in] as layout.py packs it; frozen, its tensors are not to be written to.

    masks int64 [blocks, chunks], values uint8 [bytes], block_offsets int64 [blocks + 1], scales float16
    [blocks, groups, 16], zero_points uint8 [blocks, groups, 16] or None where all are 8. Whatever makes one, it is
    checked once, here: the kernels read where the masks and offsets say. Raises KernelError for parts that disagree.
    """

    out_features: int
    in_features: int
    masks: Tensor
    values: Tensor
    block_offsets: Tensor
    scales: Tensor
    zero_points: Tensor | None = None

    def __post_init__(self) -> None:
        out, width = self.out_features, self.in_features
        if out < 1 or width < 1:
            raise KernelError(f"out={out}, in={width} is no weight: both must be at least 1")
        layout.check(self.packed, out, width)
        layout.check_groups(self.scales, self.zero_points, out, width)
        devices = {str(part.device) for part in self.parts()}
        if len(devices) > 1:
            raise KernelError(f"the parts of a packed weight are on {', '.join(sorted(devices))}: move them to one")

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor | None = None,
        mask: Tensor | None = None,
        group_size: int | None = None,
    ) -> SparseInt4Weight:
        """codes: uint8 [out, in], 0..15. scale: float [out, groups], exact in float16. zero_point: uint8 [out, groups],
        None = 8. mask: bool [out, in], True = kept; None keeps every weight that is not zero, which takes the fewest
        bytes; the mask of the base lets value planes have other codes there. group_size: checked where it is given.

        Raises KernelError where a weight that the mask drops is not zero, GridError for a code or a scale off the grid.
        """
        if codes.dim() != 2 or scale.dim() != 2 or scale.shape[0] != codes.shape[0]:
            shapes = f"codes {tuple(codes.shape)} and scale {tuple(scale.shape)}"
            raise KernelError(f"{shapes} do not fit: give [out, in] and [out, groups]")

        out, in_features = codes.shape
        groups = scale.shape[1]
        if not groups or in_features % groups:
            raise GridError(f"{groups} groups do not divide in={in_features}: give scale [out, groups]")
        if group_size is not None and group_count(in_features, group_size) != groups:
            raise GridError(f"scale has {groups} groups, but group_size={group_size} makes other ones of {in_features}")
        if zero_point is None:
            zero_point = symmetric_zero_point(scale)
        if zero_point.shape != scale.shape or zero_point.dtype != torch.uint8:
            raise KernelError(f"zero_point is not uint8 {tuple(scale.shape)}, the shape of scale: give it so, or None")

        if mask is None:
            mask = nonzero_mask(steps(codes, zero_point))
        elif mask.shape != codes.shape or mask.dtype != torch.bool:
            raise KernelError(f"mask is not bool {tuple(codes.shape)}, the shape of codes: give it so, or None")
        elif lost := lost_zeros(steps(codes, zero_point), mask):
            raise KernelError(f"mask drops {lost} weights that are not zero: give the mask of this weight, or None")

        packed = layout.pack(codes, mask)
        symmetric = bool((zero_point == SYMMETRIC_ZERO_POINT).all())
        return cls(
            out,
            in_features,
            *packed,
            layout.pack_scales(scale.cpu()),
            None if symmetric else layout.to_groups(zero_point.cpu()),
        )

    @classmethod
    def from_quantized(cls, weight: QuantizedWeight, mask: Tensor | None = None) -> SparseInt4Weight:
        """`from_codes` of what checkpoints and quantizers hand over. Raises GridError for a width other than INT4."""
        require_int4(weight.grid.kind, "weight", "the sparse kernel")
        return cls.from_codes(weight.codes, weight.scale, weight.zero_point, mask)

    def plane(self, codes: Tensor) -> Tensor:
        """The value plane of other codes uint8 [out, in] over this mask, grid and shape → uint8 [bytes].

        Raises KernelError where a weight outside the mask is not zero.
        """
        if codes.shape != (self.out_features, self.in_features):
            raise KernelError(f"codes is {tuple(codes.shape)}, the weight {(self.out_features, self.in_features)}")
        if lost_zeros(steps(codes.cpu(), self._zero_point()), self.mask()):
            raise KernelError("codes have weights outside the mask of this plane's base: pack them with their own mask")
        return layout.pack_values(codes, self.masks.cpu(), self.block_offsets.cpu()).to(self.values.device)

    def with_values(self, values: Tensor) -> SparseInt4Weight:
        """This weight with another value plane: the other parts are shared, not copied."""
        return replace(self, values=values)

    def linear(self, x: Tensor, bias: Tensor | None = None, activation_bits: int = 16) -> Tensor:
        """`x @ W.T + bias` → [..., out] in the dtype of x, which is float32, bfloat16 or float16; bias of that dtype.

        activation_bits: 16, or 8 for speed. The CPU kernels take x as fixed point, in segments of up to 128 inputs of
        one group: each costs at most 0.51 * max|x| of the segment / 32639 (8 bits: / 127) * sum |weight|, beside
        float32's rounding (csrc/kernel.h); plain torch and the GPU multiply in float32 and ignore it. A row without a
        kept weight gives exactly the bias. Groups that are no multiple of 8, more than one a row, take plain torch.
        Raises KernelError (plain torch) or RuntimeError (compiled) for an x or a bias that does not fit.
        """
        plain = self._plain_only and x.device.type == "cpu"
        call = operators.linear_in_torch if plain else operators.sparse_int4_linear
        return call(x, self.masks, self.values, *self._rest(bias, activation_bits))

    def linear_planes(
        self,
        x: Tensor,
        planes: Sequence[Tensor],
        tokens: Sequence[int],
        bias: Tensor | None = None,
        activation_bits: int = 16,
    ) -> Tensor:
        """x [tokens, in], the first `tokens[0]` of them through the value plane `planes[0]`, the next `tokens[1]`
        through `planes[1]`, and so on, in one call and without a copy → [tokens, out]."""
        if self._plain_only and x.device.type == "cpu":
            parts = zip(x.split(list(tokens)), planes, strict=True)
            return torch.cat([self.with_values(plane).linear(rows, bias) for rows, plane in parts])
        rest = self._rest(bias, activation_bits)
        return operators.sparse_int4_linear_planes(x, self.masks, list(planes), list(tokens), *rest)

    @property
    def _plain_only(self) -> bool:
        """Whether the compiled kernels cannot take the groups."""
        return self.scales.shape[1] > 1 and self.group_size % 8 != 0

    def _rest(
        self, bias: Tensor | None, activation_bits: int
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, int, int]:
        """The arguments of both operators behind the values."""
        return self.block_offsets, self.scales, self.zero_points, bias, self.out_features, activation_bits

    def unpack(self) -> QuantizedWeight:
        """Codes (pruned weights have that of their zero point), scale and zero point, on the CPU."""
        out = self.out_features
        codes, _ = layout.unpack(self.packed, self.zero_points, out, self.in_features)
        return int4_weight(codes, layout.from_groups(self.scales.cpu(), out).float(), self._zero_point())

    def _zero_point(self) -> Tensor:
        """uint8 [out, groups], on the CPU."""
        if self.zero_points is None:
            return symmetric_zero_point(layout.from_groups(self.scales.cpu(), self.out_features))
        return layout.from_groups(self.zero_points.cpu(), self.out_features).contiguous()

    def mask(self) -> Tensor:
        """bool [out, in], True = kept, on the CPU."""
        return layout.unpack(self.packed, self.zero_points, self.out_features, self.in_features)[1]

    def to(self, device: torch.device | str) -> SparseInt4Weight:
        """On another device."""
        return SparseInt4Weight(self.out_features, self.in_features, *(part.to(device) for part in self.parts()))

    def parts(self) -> list[Tensor]:
        """Its tensors."""
        parts = [self.masks, self.values, self.block_offsets, self.scales]
        return parts if self.zero_points is None else [*parts, self.zero_points]

    def __repr__(self) -> str:
        return (
            f"SparseInt4Weight(out={self.out_features}, in={self.in_features}, group_size={self.group_size}, "
            f"density={self.density:.2f}, bits a weight={self.bits:.2f})"
        )

    @property
    def packed(self) -> layout.Packed:
        return layout.Packed(self.masks, self.values, self.block_offsets)

    @property
    def group_size(self) -> int:
        """Inputs of a group; `in` where it is per channel."""
        return self.in_features // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.numel() * part.element_size() for part in self.parts())

    @property
    def bits(self) -> float:
        """Bits a weight, pruned ones counted."""
        return 8 * self.nbytes / (self.out_features * self.in_features)

    @property
    def density(self) -> float:
        """The fraction of weights that the mask keeps."""
        return layout.kept(self.masks) / (self.out_features * self.in_features)
