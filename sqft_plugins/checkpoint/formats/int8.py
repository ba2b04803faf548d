"""compressed-tensors' `int-quantized`: integers of 8 bits, a byte each, for runtimes that round the activations, too.

Of a linear layer `m`:

    m.weight             int8 [out, in]       the code minus 128
    m.weight_scale       float, [1] or scalar (per tensor), [out, 1] (per channel)
    m.weight_zero_point  int8, as the scale   the zero point minus 128; asymmetric only

Dequantized by compressed-tensors, a weight is rounded to the dtype of the scales: `dequantize` of that dtype.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from sqft_plugins.checkpoint.formats.base import Int4Format, expect_shape
from sqft_plugins.checkpoint.formats.fp8 import spread_scale
from sqft_plugins.checkpoint.formats.scheme import one_scheme
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import PER_CHANNEL, Grid, QuantizedWeight, symmetric_zero_point


class IntQuantized(Int4Format):
    name = "int-quantized"
    declared = "compressed-tensors/int-quantized"
    marks = (".weight_scale",)
    endings = (".weight", ".weight_scale", ".weight_zero_point", ".input_scale", ".input_zero_point")
    scale_end = ".weight_scale"
    codes_end = ".weight"

    @cached_property
    def grid(self) -> GridStamp:
        """Raises CheckpointError for another width, and for groups."""
        path = self._tensors.path
        scheme = one_scheme(path, self._settings, self.declared)
        found = (scheme.get("type", "int"), scheme["num_bits"], scheme["strategy"])
        if found[:2] != ("int", 8) or found[2] not in ("channel", "tensor"):
            raise CheckpointError(
                f"model {path} is {self.name} of {found[1]} bits, type {found[0]}, strategy {found[2]}: give INT8 per "
                "channel or per tensor"
            )
        return GridStamp(bits=8, group_size=PER_CHANNEL, symmetric=bool(scheme.get("symmetric", True)))

    def shape(self, module: str) -> tuple[int, int]:
        rows, columns = self._tensors.spec(f"{module}.weight").shape
        return rows, columns

    def packed_codes(self, codes: Tensor) -> Tensor:
        return (codes ^ 128).view(torch.int8)

    def weight(self, module: str) -> QuantizedWeight:
        tensors, shape = self._tensors, self.shape(module)
        codes = expect_shape(tensors, f"{module}.weight", shape, torch.int8).view(torch.uint8) ^ 128
        scale, _ = spread_scale(tensors, self.scale_name(module), shape, None)
        zero_point = symmetric_zero_point(scale, self.grid.kind)
        if not self.grid.symmetric:
            stored = tensors.spec(self.scale_name(module)).shape
            signed = expect_shape(tensors, f"{module}.weight_zero_point", stored, torch.int8)
            zero_point = (signed.view(torch.uint8) ^ 128).reshape(-1, 1).expand(scale.shape).contiguous()
        return QuantizedWeight(codes, Grid(self.grid.kind, scale, zero_point))
