"""compressed-tensors `pack-quantized`, the format that `sqft quantize` writes and stock vLLM and transformers read.

Of a linear layer `m` of 2, 3, 4, 5, 6 or 8 bits:

    m.weight_packed      int32 [out, ceil(in · bits / 32)]      codes, the first in the lowest bits
    m.weight_scale       float [out, groups]
    m.weight_shape       int64 [2]                              (out, in)
    m.weight_zero_point  int32 [ceil(out · bits / 32), groups]  asymmetric only
    m.weight_g_idx       int32 [in]                             the group of each column, only with actorder "group"

Other values of `actorder` say in which order columns were quantized, and leave groups neighbours.
Of 3, 5 and 6 bits the padded rows that compressed-tensors wrote before 0.20 are read, too (grid/packing.py).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ValidationError
from torch import Tensor

from sqft_plugins.checkpoint.formats.base import (
    Int4Format,
    expect_finite,
    expect_order,
    expect_scale,
    expect_shape,
    stored_shape,
)
from sqft_plugins.checkpoint.formats.scheme import one_scheme
from sqft_plugins.checkpoint.stamp import FOLDER, GridStamp, OtherGrid
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import (
    ACT_ORDER,
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

ORDERED = ("group", True)
"""Values of `actorder` with which groups are no neighbours."""


class PackQuantized(Int4Format):
    name = "pack-quantized"
    declared = "compressed-tensors/pack-quantized"
    marks: ClassVar[tuple[str, ...]] = (".weight_packed",)
    endings: ClassVar[tuple[str, ...]] = (
        ".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx",
    )  # fmt: skip
    scale_end = ".weight_scale"
    codes_end: ClassVar[str | None] = ".weight_packed"

    @property
    def grid(self) -> GridStamp:
        path = self._tensors.path
        if not self._settings:
            raise CheckpointError(
                f"{path}/config.json has no quantization_config but a weight is packed: copy the model again"
            )
        scheme = one_scheme(path, self._settings, self.declared)
        if (scheme.get("type", "int"), scheme["strategy"] in ("group", "channel")) != ("int", True):
            raise CheckpointError(
                f"model {path} is not of integers in groups or per channel: quantize it again with one grid"
            )
        if scheme["num_bits"] not in UNIFORM:
            raise CheckpointError(
                f"{path}/config.json: quantization_config has num_bits={scheme['num_bits']!r}: use "
                f"{', '.join(map(str, UNIFORM))} bits, quantize it again with `sqft quantize`"
            )

        try:
            size = PER_CHANNEL if scheme["strategy"] == "channel" else scheme["group_size"]
            plain = GridStamp(bits=scheme["num_bits"], group_size=size, symmetric=scheme["symmetric"])
        except (KeyError, ValidationError) as error:
            raise CheckpointError(
                f"{path}/config.json: quantization_config has no weight groups: copy it again"
            ) from error
        ordered = scheme.get("actorder") in ORDERED
        return OtherGrid(**plain.model_dump(), name=ACT_ORDER[plain.bits].name) if ordered else plain

    def shape(self, module: str) -> tuple[int, int]:
        return stored_shape(self._tensors, f"{module}.weight_shape")

    def check_recodable(self) -> None:
        super().check_recodable()
        for module in self.modules:
            if self._tensors.spec(f"{module}.weight_packed").shape[1] != packed_words(
                self.shape(module)[1], self.grid.bits
            ):
                raise CheckpointError(
                    f"{module} of {self._tensors.path} is packed with padding, as compressed-tensors did before 0.20: "
                    "quantize the model again with `sqft quantize`"
                )

    def packed_codes(self, codes: Tensor) -> Tensor:
        return pack(codes, self.grid.bits)

    def weight(self, module: str) -> QuantizedWeight:
        tensors, grid = self._tensors, self.grid
        rows, columns = self.shape(module)
        groups = group_count(columns, grid.group_size, module)

        packed = self._words(f"{module}.weight_packed", columns, rows, by_rows=True)
        read = expect_scale if FOLDER in self._settings else expect_finite  # others make smaller ones, and 0, too
        scale = read(tensors, f"{module}.weight_scale", (rows, groups))
        if grid.symmetric:
            zero_point = symmetric_zero_point(scale, grid.kind)
        else:
            stored = self._words(f"{module}.weight_zero_point", rows, groups, by_rows=False)
            zero_point = unpack_zero_point(stored, rows, grid.bits)
        order = None
        if isinstance(grid, OtherGrid):
            order = expect_order(tensors, f"{module}.weight_g_idx", columns, groups)
        return QuantizedWeight(
            unpack(packed, columns, grid.bits), Grid(grid.kind, scale, zero_point, column_group=order)
        )

    def _words(self, name: str, count: int, others: int, by_rows: bool) -> Tensor:
        """The tensor `name` of `count` codes in each row (or column), dense or padded. Raises CheckpointError."""
        words = {packed_words(count, self.grid.bits), padded_words(count, self.grid.bits)}
        found = self._tensors.spec(name).shape
        shapes = [(one, others)[:: -1 if by_rows else 1] for one in sorted(words)]
        return expect_shape(self._tensors, name, found if found in shapes else shapes[0])
