"""The compact form of an INT4 folder, for distribution: about 3 bits a weight and the scales, at 50 %.

    config.json               quantization_config: quant_method "sqft", format "compact", version, grid, ignore
    compact-*.safetensors     the shards: masked INT4 weights as compact.py says, all other tensors as they were
    sqft/stamp.json           as in any folder; there is no mask file, the bitmasks are the mask
    sqft/pack-quantized/      what the INT4 folder had in place of the above: config.json, index, headers of its files

A float weight with a mask has its `.bitmask` beside it; an INT4 weight without a mask stays `pack-quantized`.

The shards have names of their own because transformers only warns of an unknown quant_method: under its usual names it
would load random weights. So it finds no weights and says so, and vLLM names the method that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor

from sqft_plugins.checkpoint.compact import compact_unpack, nibble_bytes, unpack_nibbles
from sqft_plugins.checkpoint.formats import PackQuantized, check_scale, expect_shape, stored_shape
from sqft_plugins.checkpoint.stamp import FOLDER, GridStamp
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import QuantizedWeight, group_count, symmetric_zero_point
from sqft_plugins.mask import packed_mask_shape

if TYPE_CHECKING:
    from sqft_plugins.checkpoint.folder import ModelFolder

METHOD = "sqft"
COMPACT = "compact"
COMPACT_VERSION = 1
PREFIX = "compact-"
ORIGINAL = f"{FOLDER}/pack-quantized"
BITMASK = ".weight.bitmask"


class Compact(PackQuantized):
    """The reader of one folder."""

    name = "the compact form"
    marks: tuple[str, ...] = (".weight.values", *PackQuantized.marks)
    parts: tuple[str, ...] = (
        ".weight.values", BITMASK, ".weight.row_offsets", ".weight.scales", ".weight.zeros", ".weight.shape",
        *PackQuantized.parts,
    )  # fmt: skip

    def __init__(self, folder: ModelFolder, config: Mapping[str, Any]):
        version = config.get("version")
        if not isinstance(version, int) or version > COMPACT_VERSION:
            raise CheckpointError(
                f"model {folder.path} has compact version {version}, this release reads up to {COMPACT_VERSION}: "
                f"upgrade sqft-plugins"
            )
        super().__init__(folder, config)
        try:
            self._grid = GridStamp(**{field: config[field] for field in GridStamp.model_fields})
        except (KeyError, ValidationError) as error:
            raise CheckpointError(f"{folder.path}/config.json: the compact form has no grid: copy it again") from error

    @property
    def grid(self) -> GridStamp:
        return self._grid

    def is_compact(self, module: str) -> bool:
        """Whether this weight is stored in the compact form."""
        return f"{module}.weight.values" in self._folder.files

    def scales(self, module: str) -> str:
        return f"{module}.weight.scales" if self.is_compact(module) else super().scales(module)

    def shape(self, module: str) -> tuple[int, int]:
        if not self.is_compact(module):
            return super().shape(module)
        return stored_shape(self._folder, f"{module}.weight.shape")

    def quantized(self, module: str) -> QuantizedWeight:
        if not self.is_compact(module):
            return super().quantized(module)
        folder, where = self._folder, f"{module}.weight"
        rows, columns = self.shape(module)
        groups = group_count(columns, self.grid.group_size, module)
        scale = expect_shape(folder, f"{where}.scales", (rows, groups)).to(torch.float32)
        check_scale(scale, f"{folder.files[f'{where}.scales']}: {where}.scales")
        if self.grid.symmetric:
            zero_point = symmetric_zero_point(scale)
        else:
            zeros = expect_shape(folder, f"{where}.zeros", (rows, nibble_bytes(groups)))
            zero_point = unpack_nibbles(zeros)[:, :groups]
        codes = self._codes(module, (rows, columns), zero_point)
        return QuantizedWeight(codes, scale, zero_point.contiguous())

    def _codes(self, module: str, shape: tuple[int, int], zero_point: Tensor) -> Tensor:
        folder, where = self._folder, f"{module}.weight"
        bitmask = expect_shape(folder, f"{where}.bitmask", packed_mask_shape(shape))
        offsets = expect_shape(folder, f"{where}.row_offsets", (shape[0] + 1,))
        try:
            return compact_unpack(bitmask, folder.tensor(f"{where}.values"), offsets, zero_point, shape[1])[0]
        except CheckpointError as error:
            file = folder.files[f"{where}.values"]
            raise CheckpointError(f"{file}: {where}: {error}: copy the model again") from error
