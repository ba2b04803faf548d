"""compressed-tensors' `nvfp4-pack-quantized` and `mxfp4-pack-quantized`: e2m1, two codes a byte.

Of a linear layer `m`:

    m.weight_packed        uint8 [out, in / 2]           codes, the first of two in the lower half
    m.weight_scale         float8_e4m3fn [out, in / 16]  NVFP4
                           uint8 [out, in / 32]          MXFP4: the exponent of a power of two, plus 127
    m.weight_global_scale  float32 [1]                   NVFP4: it divides the scales
    m.input_global_scale   of the activations, which the runtime rounds to FP4: not of the weight

compressed-tensors divides the scales by the global one in float32, multiplies in float32 and rounds to bfloat16, which
is `dequantize(torch.bfloat16)`. Levels are doubled here (`sqft_plugins.grid.kinds.E2M1`), and scales halved, which
changes no bit of a product.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from sqft_plugins.checkpoint.formats.base import Int4Format, expect_finite, expect_shape
from sqft_plugins.checkpoint.formats.scheme import one_scheme
from sqft_plugins.checkpoint.stamp import OtherGrid
from sqft_plugins.errors import CheckpointError, GridError
from sqft_plugins.grid import MXFP4, NVFP4, Grid, GridKind, QuantizedWeight, group_count, join_numbers, part_numbers

BIAS = 127
"""Of an exponent of MXFP4; 255 is NaN."""


class FP4(Int4Format):
    """What both have in common. A class has the kind of grid and reads the scales."""

    kind: ClassVar[GridKind]
    marks = (".weight_packed",)
    endings = (".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale", ".input_scale")
    scale_end = ".weight_scale"
    codes_end = ".weight_packed"

    @cached_property
    def grid(self) -> OtherGrid:
        """Raises CheckpointError for other settings than those of the format."""
        scheme = one_scheme(self._tensors.path, self._settings, self.declared)
        size = self.kind.group_size
        found = scheme.get("type"), scheme["num_bits"], scheme.get("group_size"), scheme.get("symmetric", True)
        if found != ("float", 4, size, True):
            raise CheckpointError(
                f"model {self._tensors.path} is {self.name} of {found[1]} bits, type {found[0]}, group_size={found[2]},"
                f" symmetric={found[3]}: give 4 bits of floats in symmetric groups of {size}"
            )
        assert size is not None
        return OtherGrid(bits=4, group_size=size, symmetric=True, name=self.kind.name)

    def shape(self, module: str) -> tuple[int, int]:
        rows, pairs = self._tensors.spec(f"{module}.weight_packed").shape
        return rows, 2 * pairs

    def packed_codes(self, codes: Tensor) -> Tensor:
        return join_numbers(codes.flatten(), 4).view(len(codes), -1)

    def weight(self, module: str) -> QuantizedWeight:
        rows, columns = self.shape(module)
        groups = group_count(columns, self.grid.group_size, module)
        packed = expect_shape(self._tensors, f"{module}.weight_packed", (rows, columns // 2), torch.uint8)
        codes = part_numbers(packed.flatten(), 4).view(rows, columns)
        return QuantizedWeight(codes, Grid(self.kind, self.half_scale(module, (rows, groups))))

    def half_scale(self, module: str, shape: tuple[int, int]) -> Tensor:
        """Half of the scale of each group, float32 [out, groups]. Raises CheckpointError, GridError."""
        raise NotImplementedError


class NVFP4Packed(FP4):
    name = "nvfp4-pack-quantized"
    declared = "compressed-tensors/nvfp4-pack-quantized"
    kind = NVFP4

    def half_scale(self, module: str, shape: tuple[int, int]) -> Tensor:
        local = expect_finite(self._tensors, self.scale_name(module), shape, torch.float8_e4m3fn)
        name = f"{module}.weight_global_scale"
        whole = expect_finite(self._tensors, name, self._tensors.spec(name).shape)
        if whole.numel() != 1 or not bool(whole > 0):
            raise GridError(
                f"{self._tensors.files[name]}: {name} is {whole.flatten()[:2].tolist()}, expected one number above 0: "
                "copy the model again"
            )
        return local / whole.reshape(()) / 2


class MXFP4Packed(FP4):
    name = "mxfp4-pack-quantized"
    declared = "compressed-tensors/mxfp4-pack-quantized"
    kind = MXFP4

    def half_scale(self, module: str, shape: tuple[int, int]) -> Tensor:
        name = self.scale_name(module)
        exponent = expect_shape(self._tensors, name, shape, torch.uint8)
        if bool((exponent == 255).any()):
            raise GridError(f"{self._tensors.files[name]}: {name} holds NaN: copy the model again")
        return torch.ldexp(torch.ones(shape), exponent.int() - BIAS - 1)
