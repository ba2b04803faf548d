"""AutoGPTQ and GPTQModel folders as bases (the published SQFT bases are such: transformers' GPTQConfig(bits=4)).

Of a linear layer `m`, 4-bit, codes eight to an int32, the first in the lowest bits:

    m.qweight  int32 [in / 8, out]       codes, packed along `in`
    m.qzeros   int32 [groups, out / 8]   zero points, packed along `out`
    m.scales   fp16  [groups, out]
    m.g_idx    int32 [in]                the group of each column; not in every folder

`checkpoint_format` "gptq" (v1, also where it is missing) stores `zero_point - 1`, "gptq_v2" stores `zero_point`.
GPTQModel goes from v2 to v1 by subtracting 1 from all eight zero points of a word at once, so a zero point of 0 borrows
from its neighbour (gptqmodel/utils/model.py, convert_gptq_v2_to_v1_format_module); adding to the whole word, as here,
is the exact inverse. AutoGPTQ's own packer loses such a word (AutoGPTQ pull request 640): nobody can read it back.

Some folders with `sym: true` store 8 under the name of v1, or 7 under that of v2 (vLLM pull request 38966). A symmetric
grid has the zero point 8, so what is stored decides there.

Scales are fp16 numbers of 11 bits, not of 8 as those we make: they are kept exactly, as float32. They stay exact in
fp16 (GGUF's `d`, an INT4 folder of an fp16 model), not in bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sqft_plugins.checkpoint.formats.base import Int4Format, expect_shape
from sqft_plugins.checkpoint.json_object import REMEDY, read_object
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import CheckpointError, GridError
from sqft_plugins.grid import (
    PER_CHANNEL,
    SYMMETRIC_ZERO_POINT,
    QuantizedWeight,
    group_count,
    group_width,
    int4_weight,
    pack,
    packed_words,
    unpack,
)
from sqft_plugins.progress import say

CONFIG_FILE = "quantize_config.json"
FORMATS = {"gptq": 1, "gptq_v2": 0}
"""`checkpoint_format` → what is added to a stored zero point."""
ONES = 0x11111111
"""1 for each of the eight codes of a word."""


class Zeros(NamedTuple):
    """added: to each stored zero point. symmetric: whether all zero points of the folder are then 8."""

    added: int
    symmetric: bool


class AutoGPTQ(Int4Format):
    """All `g_idx` and `qzeros`, which are small, are looked at once, before any weight."""

    name = "AutoGPTQ"
    declared = "gptq"
    marks = (".qweight",)
    endings = (".qweight", ".qzeros", ".scales", ".g_idx")
    single = "gptq_model*.safetensors"

    @classmethod
    def settings(cls, path: Path | None, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Those of config.json go before those of quantize_config.json, which older folders have alone."""
        if config is not None and config.get("quant_method") != cls.declared:
            return None
        if path is not None and (path / CONFIG_FILE).is_file():
            return {"quant_method": cls.declared, **read_object(path / CONFIG_FILE, REMEDY), **(config or {})}
        return None if config is None else dict(config)

    @cached_property
    def grid(self) -> GridStamp:
        """Raises CheckpointError for other than 4 bits, another layout, settings of single layers, and act-order."""
        path, config = self._tensors.path, self._settings
        size, layout = config.get("group_size"), self._layout

        if config["quant_method"] != self.declared:
            raise CheckpointError(f"model {path} is quantized as {config['quant_method']}: give a gptq model")
        if layout not in FORMATS or config.get("is_marlin_format"):
            raise CheckpointError(f"model {path} has checkpoint_format {layout}: save it as gptq or gptq_v2")
        if config.get("bits") != 4:
            raise CheckpointError(f"model {path} has bits={config.get('bits')}: give a model of 4 bits")
        if not isinstance(size, int) or (size <= 0 and size != PER_CHANNEL):
            raise CheckpointError(f"model {path} has group_size={size}: give one with groups, or with -1 (per channel)")

        changed = {"bits", "group_size", "desc_act", "sym"}
        for pattern, settings in (config.get("dynamic") or {}).items():
            if changed & set(settings):
                raise CheckpointError(f"model {path} has settings of its own for {pattern!r}: give one with one grid")

        self._check_order(size)
        return GridStamp(group_size=size, symmetric=self._zeros.symmetric)

    def scale_name(self, module: str) -> str:
        return f"{module}.scales"

    def shape(self, module: str) -> tuple[int, int]:
        words, rows = self._tensors.spec(f"{module}.qweight").shape
        return rows, 8 * words

    def check_recodable(self) -> None:
        _ = self.grid  # act-order and other layouts are refused there

    def codes_name(self, module: str) -> str:
        return f"{module}.qweight"

    def packed_codes(self, codes: Tensor) -> Tensor:
        return pack(codes).t().contiguous()

    def weight(self, module: str) -> QuantizedWeight:
        tensors = self._tensors
        rows, columns = self.shape(module)
        groups = group_count(columns, self.grid.group_size, module)

        codes = unpack(tensors.tensor(f"{module}.qweight").t().contiguous(), columns)  # [out, in]
        stored = expect_shape(tensors, f"{module}.qzeros", (groups, packed_words(rows)))
        zero_point = unpack(_add(stored, self._zeros.added), rows).t().contiguous()  # [out, groups]
        scale = expect_shape(tensors, f"{module}.scales", (groups, rows)).t().contiguous().float()
        if not bool(torch.isfinite(scale).all()):
            raise GridError(
                f"{tensors.files[f'{module}.scales']}: {module}.scales holds NaN or infinity: copy the model again"
            )
        return int4_weight(codes, scale, zero_point)

    @property
    def _layout(self) -> str:
        return self._settings.get("checkpoint_format") or self._settings.get("format") or "gptq"

    @cached_property
    def _zeros(self) -> Zeros:
        added = FORMATS[self._layout]
        if not self._settings.get("sym", True):
            return Zeros(added, symmetric=False)

        words = set()
        for module in self.modules:
            words.update(self._tensors.tensor(f"{module}.qzeros").unique().tolist())

        for shift in (added, 1 - added):
            if words == {_word(SYMMETRIC_ZERO_POINT - shift)}:
                if shift != added:
                    say(
                        f"{self._tensors.path}: {self._layout} with sym: true, but its zero points are stored as "
                        f"{SYMMETRIC_ZERO_POINT - shift}: read as {'gptq' if shift else 'gptq_v2'}"
                    )
                return Zeros(shift, symmetric=True)
        say(f"{self._tensors.path}: sym: true, but not every zero point is 8: read as asymmetric")
        return Zeros(added, symmetric=False)

    def _check_order(self, size: int) -> None:
        for module in self.modules:
            _, columns = self.shape(module)
            width = group_width(columns, size, module)
            name = f"{module}.g_idx"
            if name not in self._tensors.files:
                if self._settings.get("desc_act"):
                    raise CheckpointError(
                        f"model {self._tensors.path} has desc_act but no tensor {name}: copy it again"
                    )
                continue

            order = expect_shape(self._tensors, name, (columns,))
            # all zeros: never filled in, as AutoGPTQ and text-generation-inference take it
            if not torch.equal(order.long(), torch.arange(columns) // width) and bool(order.any()):
                raise CheckpointError(
                    f"{name} of {self._tensors.files[name]} orders the columns by activation (desc_act): "
                    f"quantize the model again with desc_act=False"
                )


def _word(code: int) -> int:
    """Eight times `code`, as the int32 that holds it."""
    word = code * ONES
    return word - 2**32 if word >= 2**31 else word


def _add(words: Tensor, added: int) -> Tensor:
    """int32 words with `added` for each of their eight codes, modulo 2^32."""
    return (words.to(torch.int64) + added * ONES).to(torch.int32)
