"""compressed-tensors `pack-quantized`, the format that `sqft quantize` writes and stock vLLM and transformers read.

Of a linear layer `m`, 4-bit:

    m.weight_packed      int32 [out, ceil(in / 8)]      codes, eight to a word, the first in the lowest bits
    m.weight_scale       float [out, groups]
    m.weight_shape       int64 [2]                      (out, in)
    m.weight_zero_point  int32 [ceil(out / 8), groups]  asymmetric only
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ValidationError

from sqft_plugins.checkpoint.formats.base import Int4Format, expect_scale, expect_shape, stored_shape
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import (
    PER_CHANNEL,
    QuantizedWeight,
    group_count,
    int4_weight,
    packed_words,
    symmetric_zero_point,
    unpack,
    unpack_zero_point,
)


class PackQuantized(Int4Format):
    name = "pack-quantized"
    declared = "compressed-tensors/pack-quantized"
    marks: ClassVar[tuple[str, ...]] = (".weight_packed",)
    endings: ClassVar[tuple[str, ...]] = (
        ".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point",
    )  # fmt: skip

    @property
    def grid(self) -> GridStamp:
        path = self._tensors.path
        if not self._settings:
            raise CheckpointError(
                f"{path}/config.json has no quantization_config but a weight is packed: copy the model again"
            )
        try:
            weights = [group["weights"] for group in self._settings["config_groups"].values()]
            first = weights[0]
            kind = (first["num_bits"], first.get("type", "int"), first["strategy"] in ("group", "channel"))
            size = PER_CHANNEL if first["strategy"] == "channel" else first["group_size"]

            if any(w != first for w in weights) or kind != (4, "int", True) or first.get("actorder"):
                raise CheckpointError(
                    f"model {path} mixes grids, is not 4-bit in groups or per channel, or is act-ordered: "
                    "quantize it again with one grid"
                )
            return GridStamp(group_size=size, symmetric=first["symmetric"])
        except (KeyError, TypeError, AttributeError, IndexError, ValidationError) as error:
            raise CheckpointError(
                f"{path}/config.json: quantization_config has no weight groups: copy it again"
            ) from error

    def scale_name(self, module: str) -> str:
        return f"{module}.weight_scale"

    def shape(self, module: str) -> tuple[int, int]:
        return stored_shape(self._tensors, f"{module}.weight_shape")

    def weight(self, module: str) -> QuantizedWeight:
        tensors, grid = self._tensors, self.grid
        rows, columns = self.shape(module)
        groups = group_count(columns, grid.group_size, module)

        packed = expect_shape(tensors, f"{module}.weight_packed", (rows, packed_words(columns)))
        scale = expect_scale(tensors, f"{module}.weight_scale", (rows, groups))
        if grid.symmetric:
            zero_point = symmetric_zero_point(scale)
        else:
            stored = expect_shape(tensors, f"{module}.weight_zero_point", (packed_words(rows), groups))
            zero_point = unpack_zero_point(stored, rows)
        return int4_weight(unpack(packed, columns), scale, zero_point)
