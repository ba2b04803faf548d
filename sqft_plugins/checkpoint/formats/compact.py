"""The compact form of an INT4 folder, for distribution: about 3 bits a weight and the scales, at 50 %.

    config.json               quantization_config: quant_method "sqft", format "compact", version, grid, ignore
    compact-*.safetensors     the shards: masked INT4 weights as ../compact.py says, all other tensors as they were
    sqft/stamp.json           as in any folder; there is no mask file, the bitmasks are the mask
    sqft/pack-quantized/      what the INT4 folder had in place of the above: config.json, index, headers of its files

A float weight with a mask has its `.bitmask` beside it; an INT4 weight without a mask stays `pack-quantized`.

The shards have names of their own because transformers only warns of an unknown quant_method: under its usual names it
would load random weights. So it finds no weights and says so, and vLLM names the method that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from sqft_plugins.checkpoint.compact import compact_unpack, nibble_bytes, unpack_nibbles
from sqft_plugins.checkpoint.formats.base import expect_scale, expect_shape, stored_shape
from sqft_plugins.checkpoint.formats.pack_quantized import PackQuantized
from sqft_plugins.checkpoint.stamp import FOLDER, GridStamp
from sqft_plugins.checkpoint.tensors import TensorFiles
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import QuantizedWeight, group_count, int4_weight, symmetric_zero_point
from sqft_plugins.mask import packed_mask_shape

METHOD = "sqft"
COMPACT = "compact"
COMPACT_VERSION = 1
PREFIX = "compact-"
ORIGINAL = f"{FOLDER}/pack-quantized"
BITMASK = ".weight.bitmask"


class Compact(PackQuantized):
    """A module without a mask is stored as `pack-quantized`, so that this class is that one, but for masked modules."""

    name = "the compact form"
    declared = f"{METHOD}/{COMPACT}"
    marks = (".weight.values", *PackQuantized.marks)
    endings = (
        ".weight.values", BITMASK, ".weight.row_offsets", ".weight.scales", ".weight.zeros", ".weight.shape",
        *PackQuantized.endings,
    )  # fmt: skip
    codes_end = None  # a merge may fill a place that has no code here
    bitmask = BITMASK
    prefix = PREFIX

    def __init__(self, tensors: TensorFiles, settings: Mapping[str, Any] | None):
        super().__init__(tensors, settings)
        version = self._settings.get("version")
        if not isinstance(version, int) or version > COMPACT_VERSION:
            raise CheckpointError(
                f"model {tensors.path} has compact version {version}, this release reads up to {COMPACT_VERSION}: "
                f"upgrade sqft-plugins"
            )
        try:
            self._grid = GridStamp(**{field: self._settings[field] for field in GridStamp.model_fields})
        except (KeyError, ValidationError) as error:
            raise CheckpointError(f"{tensors.path}/config.json: the compact form has no grid: copy it again") from error

    @property
    def grid(self) -> GridStamp:
        return self._grid

    def is_compact(self, module: str) -> bool:
        """Whether this weight is stored in the compact form."""
        return f"{module}.weight.values" in self._tensors.files

    def scale_name(self, module: str) -> str:
        return f"{module}.weight.scales" if self.is_compact(module) else super().scale_name(module)

    def shape(self, module: str) -> tuple[int, int]:
        if not self.is_compact(module):
            return super().shape(module)
        return stored_shape(self._tensors, f"{module}.weight.shape")

    def weight(self, module: str) -> QuantizedWeight:
        if not self.is_compact(module):
            return super().weight(module)
        tensors, name = self._tensors, f"{module}.weight"
        rows, columns = self.shape(module)
        groups = group_count(columns, self.grid.group_size, module)

        scale = expect_scale(tensors, f"{name}.scales", (rows, groups))
        if self.grid.symmetric:
            zero_point = symmetric_zero_point(scale)
        else:
            packed = expect_shape(tensors, f"{name}.zeros", (rows, nibble_bytes(groups)))
            zero_point = unpack_nibbles(packed)[:, :groups].contiguous()
        return int4_weight(self._codes(name, (rows, columns), zero_point), scale, zero_point)

    def _codes(self, name: str, shape: tuple[int, int], zero_point: Tensor) -> Tensor:
        tensors = self._tensors
        bitmask = expect_shape(tensors, f"{name}.bitmask", packed_mask_shape(shape))
        offsets = expect_shape(tensors, f"{name}.row_offsets", (shape[0] + 1,))
        try:
            return compact_unpack(bitmask, tensors.tensor(f"{name}.values"), offsets, zero_point, shape[1])[0]
        except CheckpointError as error:
            file = tensors.files[f"{name}.values"]
            raise CheckpointError(f"{file}: {name}: {error}: copy the model again") from error
