"""AWQ folders, as AutoAWQ and llm-compressor's predecessors save them (`version` "gemm", 4 bits).

Of a linear layer `m`, eight codes to an int32:

    m.qweight  int32 [in, out / 8]       codes, packed along `out`
    m.qzeros   int32 [groups, out / 8]   zero points, packed along `out`
    m.scales   fp16  [groups, out]

The codes of columns 0 to 7 of a word lie, from its lowest bits, in the order 0, 2, 4, 6, 1, 3, 5, 7
(awq/utils/packing_utils.py of AutoAWQ). Runtimes compute `(code - zero_point) * scale` in fp16, rounded once, which is
`dequantize(torch.float16)`; here the product is float32, in which it is exact. Scales stay the fp16 numbers they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint.formats.base import Int4Format, expect_finite, expect_shape
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import PER_CHANNEL, QuantizedWeight, group_count, int4_weight, pack, unpack

WORD = 8
"""Codes of an int32."""
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Of a word, from its lowest bits: which of its eight columns."""


class AWQ(Int4Format):
    name = "AWQ"
    declared = "awq"
    marks = (".qweight",)
    endings = (".qweight", ".qzeros", ".scales")
    scale_end = ".scales"
    codes_end = ".qweight"

    @classmethod
    def settings(cls, path: Path | None, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return dict(config) if config is not None and config.get("quant_method") == cls.declared else None

    @cached_property
    def grid(self) -> GridStamp:
        """Raises CheckpointError for other than 4 bits, another layout, and a folder without zero points."""
        path, config = self._tensors.path, self._settings
        layout, bits = config.get("version") or config.get("format") or "gemm", config.get("bits", config.get("w_bit"))
        size = config.get("group_size", config.get("q_group_size"))

        if bits != 4:
            raise CheckpointError(f"model {path} is awq with bits={bits!r}: give a model of 4 bits")
        if str(layout).lower() != "gemm":
            raise CheckpointError(f"model {path} is awq of version {layout}: save it as gemm")
        if config.get("zero_point") is False:
            raise CheckpointError(f"model {path} is awq with zero_point=false: give one with zero points")
        if not isinstance(size, int) or (size <= 0 and size != PER_CHANNEL):
            raise CheckpointError(
                f"model {path} has group_size={size!r}: give one with groups, or with -1 (per channel)"
            )
        return GridStamp(group_size=size, symmetric=False)

    def shape(self, module: str) -> tuple[int, int]:
        columns, words = self._tensors.spec(f"{module}.qweight").shape
        return WORD * words, columns

    def packed_codes(self, codes: Tensor) -> Tensor:
        return pack(codes.t().unflatten(1, (-1, WORD))[:, :, ORDER].flatten(1))

    def weight(self, module: str) -> QuantizedWeight:
        tensors, (rows, columns) = self._tensors, self.shape(module)
        groups = group_count(columns, self.grid.group_size, module)
        scale = expect_finite(tensors, f"{module}.scales", (groups, rows)).t().contiguous()
        codes, zero_point = (
            _unpacked(expect_shape(tensors, f"{module}.{part}", (count, rows // WORD), torch.int32))
            for part, count in (("qweight", columns), ("qzeros", groups))
        )
        return int4_weight(codes, scale, zero_point)


def _unpacked(words: Tensor) -> Tensor:
    """int32 [n, out / 8] → uint8 [out, n]."""
    places = [ORDER.index(column) for column in range(WORD)]
    return unpack(words, WORD * words.shape[1]).unflatten(1, (-1, WORD))[:, :, places].flatten(1).t().contiguous()
