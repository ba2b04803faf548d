"""FP8 folders: each weight a number of torch.float8_e4m3fn, times a scale.

Of a linear layer `m`:

    m.weight            float8_e4m3fn [out, in]
    m.weight_scale      float, [1] or scalar (per tensor), [out, 1] (per channel)
    m.weight_scale_inv  float32 [ceil(out / 128), ceil(in / 128)], in blocks, as DeepSeek-V3 has it: it multiplies, too
    m.input_scale       of the activations, which the runtime rounds to FP8: not of the weight

Two programs say so in config.json: compressed-tensors (`float-quantized`, `naive-quantized`) and transformers (`fp8`,
`FineGrainedFP8Config`). Dequantized by them, `weight * scale` is rounded to the dtype of the scales, or to that of the
model: `dequantize` of that dtype. GPU kernels multiply the sum of a row instead, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint.formats.base import Int4Format, expect_finite, expect_shape
from sqft_plugins.checkpoint.formats.scheme import one_scheme
from sqft_plugins.checkpoint.stamp import OtherGrid
from sqft_plugins.checkpoint.tensors import TensorFiles
from sqft_plugins.errors import CheckpointError, GridError
from sqft_plugins.grid import FP8_E4M3, PER_CHANNEL, Grid, QuantizedWeight

NAN = 0x7F
"""The bits of NaN, without the sign."""


class FP8(Int4Format):
    """What both have in common. A class says how scales are spread."""

    marks = (".weight_scale", ".weight_scale_inv")
    endings = (".weight", ".weight_scale", ".weight_scale_inv", ".input_scale", ".activation_scale")
    codes_end = ".weight"

    @property
    def block(self) -> tuple[int, int] | None:
        """(rows, columns) of a block that shares a scale; None for a scale of each row, or one of the tensor."""
        raise NotImplementedError

    @cached_property
    def grid(self) -> OtherGrid:
        size = PER_CHANNEL if self.block is None else self.block[1]
        return OtherGrid(bits=8, group_size=size, symmetric=True, name=FP8_E4M3.name)

    def scale_name(self, module: str) -> str:
        names = [name for mark in self.marks if (name := f"{module}{mark}") in self._tensors.files]
        if len(names) > 1:
            raise CheckpointError(
                f"{module} has both {names[0]} and {names[1]}, and which one counts is unknown: take the folder as it "
                "was published"
            )
        return names[0]

    def shape(self, module: str) -> tuple[int, int]:
        rows, columns = self._tensors.spec(f"{module}.weight").shape
        return rows, columns

    def packed_codes(self, codes: Tensor) -> Tensor:
        return codes.view(torch.float8_e4m3fn)

    def weight(self, module: str) -> QuantizedWeight:
        name, shape = f"{module}.weight", self.shape(module)
        codes = expect_shape(self._tensors, name, shape, torch.float8_e4m3fn).view(torch.uint8)
        if bool(((codes & NAN) == NAN).any()):
            raise GridError(f"{self._tensors.files[name]}: {name} holds NaN: copy the model again")
        scale, order = spread_scale(self._tensors, self.scale_name(module), shape, self.block)
        return QuantizedWeight(codes, Grid(self.grid.kind, scale, column_group=order))


def spread_scale(
    tensors: TensorFiles, name: str, shape: tuple[int, int], block: tuple[int, int] | None
) -> tuple[Tensor, Tensor | None]:
    """(float32 [out, groups], `Grid.column_group`) of the scales `name` of a weight of `shape`. Raises CheckpointError,
    GridError."""
    rows, columns = shape
    if block is None:
        stored = tensors.spec(name).shape
        one_each = stored in ((rows,), (rows, 1)) and stored != (1,)
        expected = stored if one_each or stored in ((), (1,), (1, 1)) else (rows, 1)
        return expect_finite(tensors, name, expected).reshape(-1, 1).expand(rows, 1).contiguous(), None

    height, width = block
    groups = -(-columns // width)
    scale = expect_finite(tensors, name, (-(-rows // height), groups)).repeat_interleave(height, 0)[:rows].contiguous()
    return scale, None if columns % width == 0 else torch.arange(columns) // width


class FloatQuantized(FP8):
    """compressed-tensors."""

    name = "float-quantized"
    declared = "compressed-tensors/float-quantized"

    @classmethod
    def settings(cls, path: Path | None, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """`naive-quantized` is what weights without quantized activations were called."""
        ours = config is not None and (config.get("quant_method"), config.get("format")) in (
            ("compressed-tensors", "float-quantized"),
            ("compressed-tensors", "naive-quantized"),
        )
        return dict(config or {}) if ours else None

    @cached_property
    def block(self) -> tuple[int, int] | None:
        path = self._tensors.path
        scheme = one_scheme(path, self._settings, self.declared)
        found = (scheme.get("type"), scheme["num_bits"], scheme["strategy"])
        if found[:2] != ("float", 8) or found[2] not in ("channel", "tensor", "block"):
            raise CheckpointError(
                f"model {path} is {self.name} of {found[1]} bits, type {found[0]}, strategy {found[2]}: give FP8 per "
                "channel, per tensor or in blocks"
            )
        return _pair(scheme.get("block_structure"), "block_structure", path) if found[2] == "block" else None


class FineGrainedFP8(FP8):
    """transformers and DeepSeek."""

    name = "fp8"
    declared = "fp8"

    @classmethod
    def settings(cls, path: Path | None, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return dict(config) if config is not None and config.get("quant_method") == cls.declared else None

    @cached_property
    def block(self) -> tuple[int, int] | None:
        size = self._settings.get("weight_block_size")
        return None if size is None else _pair(size, "weight_block_size", self._tensors.path)


def _pair(value: Any, argument: str, path: Path) -> tuple[int, int]:
    if not (isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)):
        raise CheckpointError(f"{path}/config.json: {argument}={value!r} is no block: give [rows, columns]")
    return value[0], value[1]
