"""Numbers about a model, read one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.source import WeightSource
from sqft_plugins.errors import MismatchError
from sqft_plugins.mask import lost_zeros, packed_mask_shape, unpack_mask


def bits_per_weight(source: WeightSource, modules: Iterable[str], added: int = 0) -> float:
    """Bits on disk per weight over `modules`: their tensors with scales and zero points, without the mask file.

    added: bytes of an adapter of these modules. Raises CheckpointError for a module that the folder does not have.
    """
    names = list(modules)
    weights = max(sum(math.prod(source.weight_shape(module)) for module in names), 1)
    return 8 * sum(map(source.module_bytes, names)) / weights + 8 * added / weights


def sizes(folder: ModelFolder, modules: Iterable[str], added: int = 0) -> dict[str, Any]:
    """`bits_per_weight`, and the bytes of all weights with what is `added`."""
    return {"bits_per_weight": bits_per_weight(folder, modules, added), "bytes": folder.weight_bytes + added}


def zeros_kept(source: WeightSource, packed_masks: Mapping[str, Tensor]) -> float:
    """The fraction of pruned positions (mask bit 0) whose weight in `source`, float or INT4, is exactly 0; 1.0 where
    the masks prune nothing.

    packed_masks: module name → uint8 [out, ceil(in / 8)], `ModelFolder.masks` of the pruned base. Raises
    CheckpointError for a module that the folder does not have, MismatchError for a mask of another shape.
    """
    pruned = lost = 0
    for module, packed in packed_masks.items():
        weight = source.weight(module)
        if packed.shape != packed_mask_shape(weight.shape):
            raise MismatchError(
                f"mask of {module} is {tuple(packed.shape)} but its weight {tuple(weight.shape)}: give its own mask"
            )
        mask = unpack_mask(packed, weight.shape[1])  # [out, in]
        pruned += mask.numel() - int(mask.sum())
        lost += lost_zeros(weight, mask)
    return (pruned - lost) / pruned if pruned else 1.0
