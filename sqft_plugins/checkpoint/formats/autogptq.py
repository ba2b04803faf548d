"""AutoGPTQ and GPTQModel folders as bases (the published SQFT bases are such: transformers' GPTQConfig(bits=4)).

Of a linear layer `m` of 2, 3, 4 or 8 bits, the first code in the lowest bits of the first int32:

    m.qweight  int32 [in · bits / 32, out]       codes, packed along `in`
    m.qzeros   int32 [groups, out · bits / 32]   zero points, packed along `out`
    m.scales   fp16  [groups, out]
    m.g_idx    int32 [in]                        the group of each column; not in every folder

With `desc_act` columns were quantized by falling activation, and a group has the columns that came together: `g_idx`
alone says which. It is believed whatever `desc_act` says, all zeros (never filled in) apart.

`checkpoint_format` "gptq" (v1, also where it is missing) stores `zero_point - 1`, "gptq_v2" stores `zero_point`.
GPTQModel goes from v2 to v1 by subtracting 1 from all zero points of a word at once, so a zero point of 0 borrows from
its neighbour (gptqmodel/utils/model.py, convert_gptq_v2_to_v1_format_module); adding to the whole word, as here, is the
exact inverse. AutoGPTQ's own packer loses such a word (AutoGPTQ pull request 640): nobody can read it back. Of 3 bits
that function takes the constants of the first and the third of three words for each other, so what v1 stores depends on
the program: of v1 with 3 bits symmetric folders alone are read.

Some folders with `sym: true` store 8 under the name of v1, or 7 under that of v2 (vLLM pull request 38966). A symmetric
grid of 4 bits has the zero point 8, so what is stored decides there.

Runtimes compute `(code - zero_point) * scale` in fp16, rounded once, which is `dequantize(torch.float16)`. Scales are
fp16 numbers of 11 bits, not of 8 as those we make: they are kept exactly, as float32. They stay exact in fp16 (GGUF's
`d`, an INT4 folder of an fp16 model), not in bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sqft_plugins.checkpoint.formats.base import Int4Format, expect_finite, expect_order, expect_shape
from sqft_plugins.checkpoint.json_object import REMEDY, read_object
from sqft_plugins.checkpoint.stamp import GridStamp, OtherGrid
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
    unpack,
)
from sqft_plugins.progress import say

CONFIG_FILE = "quantize_config.json"
FORMATS = {"gptq": 1, "gptq_v2": 0}
"""`checkpoint_format` → what is added to a stored zero point."""
BITS = (2, 3, 4, 8)


class Zeros(NamedTuple):
    """added: to each stored zero point. symmetric: whether all zero points of the folder are then 2^(bits - 1)."""

    added: int
    symmetric: bool


class AutoGPTQ(Int4Format):
    """All `g_idx` and `qzeros`, which are small, are looked at once, before any weight."""

    name = "AutoGPTQ"
    declared = "gptq"
    marks = (".qweight",)
    endings = (".qweight", ".qzeros", ".scales", ".g_idx")
    scale_end = ".scales"
    codes_end = ".qweight"
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
        """Raises CheckpointError for other widths, another layout, and settings of single layers."""
        path, config = self._tensors.path, self._settings
        size, layout, bits = config.get("group_size"), self._layout, config.get("bits")

        if config["quant_method"] != self.declared:
            raise CheckpointError(f"model {path} is quantized as {config['quant_method']}: give a gptq model")
        if layout not in FORMATS or config.get("is_marlin_format"):
            raise CheckpointError(f"model {path} has checkpoint_format {layout}: save it as gptq or gptq_v2")
        if bits not in BITS:
            raise CheckpointError(f"model {path} has bits={bits!r}: give a model of {', '.join(map(str, BITS))} bits")
        if not isinstance(size, int) or (size <= 0 and size != PER_CHANNEL):
            raise CheckpointError(
                f"model {path} has group_size={size!r}: give one with groups, or with -1 (per channel)"
            )

        changed, dynamic = {"bits", "group_size", "desc_act", "sym"}, config.get("dynamic") or {}
        if not isinstance(dynamic, dict):
            raise CheckpointError(f"model {path} has dynamic={dynamic!r}, which is no JSON object: copy it again")
        for pattern, settings in dynamic.items():
            if changed & set(settings or {}):
                raise CheckpointError(f"model {path} has settings of its own for {pattern!r}: give one with one grid")

        plain = GridStamp(bits=bits, group_size=size, symmetric=self._zeros.symmetric)
        return OtherGrid(**plain.model_dump(), name=ACT_ORDER[bits].name) if self._orders(size) else plain

    def shape(self, module: str) -> tuple[int, int]:
        words, rows = self._tensors.spec(f"{module}.qweight").shape
        return rows, 32 * words // int(self._settings["bits"])

    def packed_codes(self, codes: Tensor) -> Tensor:
        return pack(codes, self.grid.bits).t().contiguous()

    def weight(self, module: str) -> QuantizedWeight:
        tensors, bits = self._tensors, self.grid.bits
        rows, columns = self.shape(module)
        groups = group_count(columns, self.grid.group_size, module)

        codes = unpack(tensors.tensor(f"{module}.qweight").t().contiguous(), columns, bits)  # [out, in]
        scale = expect_finite(tensors, f"{module}.scales", (groups, rows)).t().contiguous()
        stored = expect_shape(tensors, f"{module}.qzeros", (groups, packed_words(rows, bits)))
        if self._zeros.symmetric:
            zero_point = torch.full_like(scale, self.grid.kind.symmetric_zero_point, dtype=torch.uint8)
        else:
            zero_point = unpack(_add(stored, self._zeros.added, bits), rows, bits).t().contiguous()  # [out, groups]
        order = self._orders(self.grid.group_size).get(module)
        return QuantizedWeight(codes, Grid(self.grid.kind, scale, zero_point, column_group=order))

    @property
    def _layout(self) -> str:
        return self._settings.get("checkpoint_format") or self._settings.get("format") or "gptq"

    @cached_property
    def _zeros(self) -> Zeros:
        bits, added = self._settings["bits"], FORMATS[self._layout]
        if not self._settings.get("sym", True):
            return self._asymmetric(added)

        zero = UNIFORM[bits].symmetric_zero_point
        stored = [self._tensors.tensor(f"{module}.qzeros") for module in self.modules]
        for shift in (added, 1 - added):
            wanted = [_words(zero - shift, bits)]
            if bits == 3 and shift:  # as GPTQModel makes it
                ones = reversed(_words(1, 3))
                wanted.append([_signed(word - one) for word, one in zip(_words(zero, 3), ones, strict=True)])
            if any(all(_repeats(words, own) for words in stored) for own in wanted):
                if shift != added:
                    say(
                        f"{self._tensors.path}: {self._layout} with sym: true, but its zero points are stored as "
                        f"{zero - shift}: read as {'gptq' if shift else 'gptq_v2'}"
                    )
                return Zeros(shift, symmetric=True)
        say(f"{self._tensors.path}: sym: true, but not every zero point is {zero}: read as asymmetric")
        return self._asymmetric(added)

    def _asymmetric(self, added: int) -> Zeros:
        if added and self._settings["bits"] == 3:
            raise CheckpointError(
                f"model {self._tensors.path} has zero points of 3 bits in checkpoint_format gptq, which programs store "
                "in different ways: save it as gptq_v2"
            )
        return Zeros(added, symmetric=False)

    def _orders(self, size: int) -> dict[str, Tensor]:
        """Module → `Grid.column_group`, of those in act-order."""
        if self._found_orders is None:
            found = {module: self._order(module, size) for module in self.modules}
            self._found_orders = {module: order for module, order in found.items() if order is not None}
        return self._found_orders

    _found_orders: dict[str, Tensor] | None = None

    def _order(self, module: str, size: int) -> Tensor | None:
        name, columns = f"{module}.g_idx", self.shape(module)[1]
        groups = group_count(columns, size, module)
        if name in self._tensors.files:
            return expect_order(self._tensors, name, columns, groups)
        if self._settings.get("desc_act"):
            raise CheckpointError(f"model {self._tensors.path} has desc_act but no tensor {name}: copy it again")
        return None


def _words(code: int, bits: int) -> list[int]:
    """32 times `code`, as int32 words hold it."""
    stream = sum(code << (bits * place) for place in range(32))
    return [_signed(stream >> (32 * word)) for word in range(bits)]


def _signed(word: int) -> int:
    """The int32 that holds the lowest 32 bits."""
    return (word + 2**31) % 2**32 - 2**31


def _repeats(words: Tensor, own: list[int]) -> bool:
    """Whether int32 [groups, words] has `own` again and again in each row."""
    cycle = torch.tensor(own, dtype=torch.int32)
    return bool((words == cycle.repeat(-(-words.shape[1] // len(own)))[: words.shape[1]]).all())


def _add(words: Tensor, added: int, bits: int) -> Tensor:
    """int32 words with `added` for each of their codes, modulo 2^32; none is added to 3 bits."""
    return (words.to(torch.int64) + added * _words(1, bits)[0]).to(torch.int32) if added else words
