"""compressed-tensors `pack-quantized`, the format that `sqft quantize` writes and stock vLLM and transformers read.

Of a linear layer `m` of 2, 3, 4, 5, 6 or 8 bits:

    m.weight_packed      int32 [out, ceil(in · bits / 32)]      codes, the first in the lowest bits
    m.weight_scale       float [out, groups]
    m.weight_shape       int64 [2]                              (out, in)
    m.weight_zero_point  int32 [ceil(out · bits / 32), groups]  asymmetric only

Of 3, 5 and 6 bits the padded rows that compressed-tensors wrote before 0.20 are read, too (grid/packing.py).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ValidationError
from torch import Tensor

from sqft_plugins.checkpoint.formats.base import Int4Format, expect_scale, expect_shape, stored_shape
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import (
    PER_CHANNEL,
    UNIFORM,
    Grid,
    QuantizedWeight,
    group_count,
    pack,
    packed_words,
    padded_words,
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
            kind = (first.get("type", "int"), first["strategy"] in ("group", "channel"))
            size = PER_CHANNEL if first["strategy"] == "channel" else first["group_size"]

            if any(w != first for w in weights) or kind != ("int", True) or first.get("actorder"):
                raise CheckpointError(
                    f"model {path} mixes grids, is not of integers in groups or per channel, or is act-ordered: "
                    "quantize it again with one grid"
                )
            if first["num_bits"] not in UNIFORM:
                raise CheckpointError(
                    f"{path}/config.json: quantization_config has num_bits={first['num_bits']!r}: use "
                    f"{', '.join(map(str, UNIFORM))} bits, quantize it again with `sqft quantize`"
                )
            return GridStamp(bits=first["num_bits"], group_size=size, symmetric=first["symmetric"])
        except (KeyError, TypeError, AttributeError, IndexError, ValidationError) as error:
            raise CheckpointError(
                f"{path}/config.json: quantization_config has no weight groups: copy it again"
            ) from error

    def scale_name(self, module: str) -> str:
        return f"{module}.weight_scale"

    def shape(self, module: str) -> tuple[int, int]:
        return stored_shape(self._tensors, f"{module}.weight_shape")

    def check_recodable(self) -> None:
        for module in self.modules:
            if self._tensors.spec(f"{module}.weight_packed").shape[1] != packed_words(
                self.shape(module)[1], self.grid.bits
            ):
                raise CheckpointError(
                    f"{module} of {self._tensors.path} is packed with padding, as compressed-tensors did before 0.20: "
                    "quantize the model again with `sqft quantize`"
                )

    def codes_name(self, module: str) -> str:
        return f"{module}.weight_packed"

    def packed_codes(self, codes: Tensor) -> Tensor:
        return pack(codes, self.grid.bits)

    def weight(self, module: str) -> QuantizedWeight:
        tensors, grid = self._tensors, self.grid
        rows, columns = self.shape(module)
        groups = group_count(columns, grid.group_size, module)

        packed = self._words(f"{module}.weight_packed", columns, rows, by_rows=True)
        scale = expect_scale(tensors, f"{module}.weight_scale", (rows, groups))
        if grid.symmetric:
            zero_point = symmetric_zero_point(scale, grid.kind)
        else:
            stored = self._words(f"{module}.weight_zero_point", rows, groups, by_rows=False)
            zero_point = unpack_zero_point(stored, rows, grid.bits)
        return QuantizedWeight(unpack(packed, columns, grid.bits), Grid(grid.kind, scale, zero_point))

    def _words(self, name: str, count: int, others: int, by_rows: bool) -> Tensor:
        """The tensor `name` of `count` codes in each row (or column), dense or padded. Raises CheckpointError."""
        words = {packed_words(count, self.grid.bits), padded_words(count, self.grid.bits)}
        found = self._tensors.spec(name).shape
        shapes = [(one, others)[:: -1 if by_rows else 1] for one in sorted(words)]
        return expect_shape(self._tensors, name, found if found in shapes else shapes[0])
