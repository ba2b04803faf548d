"""bitsandbytes' NF4 (`load_in_4bit`), as transformers saves it, with double quantization or without.

Of a linear layer `m`, whose weight is flattened into blocks of 64 (`blocksize`) that share a scale:

    m.weight                                    uint8 [out · in / 2, 1]  codes, the first of two in the upper half
    m.weight.absmax                             float32 [blocks], or uint8 [blocks]: codes of the second quantization
    m.weight.quant_map                          float32 [16]             the levels
    m.weight.nested_absmax                      float32 [blocks / 256]   of the second quantization
    m.weight.nested_quant_map                   float32 [256]
    m.weight.quant_state.bitsandbytes__nf4      uint8: JSON with quant_type, blocksize, shape, dtype, nested_blocksize,
                                                nested_offset

A scale that was quantized is `nested_quant_map[code] * nested_absmax + nested_offset` in float32, each step rounded. A
weight is `level * scale` in float32, rounded to the model's dtype: `dequantize` of that dtype. Rows must be whole
blocks, or a scale would belong to parts of two rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint.formats.base import Int4Format, expect_finite, expect_shape
from sqft_plugins.checkpoint.stamp import OtherGrid
from sqft_plugins.errors import CheckpointError, GridError
from sqft_plugins.grid import NF4, Grid, QuantizedWeight

STATE = ".weight.quant_state.bitsandbytes__"


class BitsAndBytes(Int4Format):
    name = "bitsandbytes NF4"
    declared = "bitsandbytes"
    marks = (f"{STATE}nf4",)
    endings = (
        ".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map", *marks,
    )  # fmt: skip
    scale_end = ".weight.absmax"
    codes_end = ".weight"

    @classmethod
    def settings(cls, path: Path | None, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return dict(config) if config is not None and config.get("quant_method") == cls.declared else None

    @cached_property
    def grid(self) -> OtherGrid:
        """Raises CheckpointError for 8 bits, FP4, and codes that are not stored as bytes."""
        path, config = self._tensors.path, self._settings
        if config.get("load_in_8bit") or not self.modules:
            kind = "8 bits" if config.get("load_in_8bit") else config.get("bnb_4bit_quant_type", "an unknown type")
            raise CheckpointError(f"model {path} is bitsandbytes of {kind}: give one of NF4")
        other = next((name for name in self._tensors.files if STATE in name and not name.endswith(self.marks)), None)
        if other is not None:
            raise CheckpointError(f"model {path} has {other}: give a model of NF4 alone")
        return OtherGrid(bits=4, group_size=self._state(self.modules[0])[0], symmetric=True, name=NF4.name)

    def shape(self, module: str) -> tuple[int, int]:
        return self._state(module)[1]

    def packed_codes(self, codes: Tensor) -> Tensor:
        flat = codes.flatten()
        return ((flat[::2] << 4) | flat[1::2]).unsqueeze(1)

    def weight(self, module: str) -> QuantizedWeight:
        tensors, name = self._tensors, f"{module}.weight"
        size, (rows, columns) = self._state(module)
        if columns % size:
            raise GridError(
                f"{module} of {tensors.path} has in={columns}, which its blocks of {size} do not divide, so that a "
                "block is in two rows: leave it out with exclude_modules"
            )
        packed = expect_shape(tensors, name, (rows * columns // 2, 1), torch.uint8).flatten()
        levels = expect_finite(tensors, f"{name}.quant_map", (16,), torch.float32)
        if levels.tolist() != torch.tensor(NF4.levels).tolist():
            raise GridError(f"{name}.quant_map of {tensors.files[name]} has other levels than NF4: copy it again")
        codes = torch.stack([packed >> 4, packed & 15], -1).view(rows, columns)
        return QuantizedWeight(codes, Grid(NF4, self._scale(module, rows * columns // size).view(rows, -1)))

    def _scale(self, module: str, blocks: int) -> Tensor:
        """float32 [blocks]."""
        tensors, name, state = self._tensors, f"{module}.weight", self._states[module]
        if f"{name}.nested_absmax" not in tensors.files:
            return expect_finite(tensors, f"{name}.absmax", (blocks,), torch.float32)
        size, offset = state["nested_blocksize"], float(state["nested_offset"])
        codes = expect_shape(tensors, f"{name}.absmax", (blocks,), torch.uint8)
        levels = expect_finite(tensors, f"{name}.nested_quant_map", (256,), torch.float32)
        scale = expect_finite(tensors, f"{name}.nested_absmax", (-(-blocks // size),), torch.float32)
        return levels[codes.long()].mul_(scale.repeat_interleave(size)[:blocks]).add_(offset)

    def _state(self, module: str) -> tuple[int, tuple[int, int]]:
        """(weights of a block, (out, in)). Raises CheckpointError for a state that is damaged."""
        name = f"{module}{self.marks[0]}"
        try:
            if module not in self._states:
                self._states[module] = json.loads(bytes(self._tensors.tensor(name).tolist()))
            state = self._states[module]
            rows, columns = state["shape"]
            if state["quant_type"] != "nf4" or int(state["blocksize"]) <= 0:
                raise ValueError(f"{state['quant_type']} in blocks of {state['blocksize']}")
            if f"{module}.weight.nested_absmax" in self._tensors.files:
                nested, offset = state["nested_blocksize"], state["nested_offset"]
                if not (isinstance(nested, int) and nested > 0 and math.isfinite(offset)):
                    raise ValueError(f"nested blocks of {nested}, offset {offset}")
            return int(state["blocksize"]), (int(rows), int(columns))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{name} of {self._tensors.path} is no state of NF4 ({error}): copy the model again"
            ) from error

    @cached_property
    def _states(self) -> dict[str, dict[str, Any]]:
        """Module → its state, of those that were read."""
        return {}
