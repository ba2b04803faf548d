"""Numbers about a model folder, read one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.errors import MismatchError
from sqft_plugins.mask import unpack_mask

STORED = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
"""The tensors in which a folder keeps one linear weight, float or INT4."""


def module_bytes(folder: ModelFolder, module: str) -> int:
    """Bytes on disk of one module's weight: with scales and zero points, without the mask."""
    return sum(folder.nbytes(f"{module}.{end}") for end in STORED if f"{module}.{end}" in folder.files)


def module_shape(folder: ModelFolder, module: str) -> tuple[int, int]:
    """(out, in) of one module's weight, float or INT4."""
    if f"{module}.weight_packed" in folder.files:
        rows, columns = (int(n) for n in folder.tensor(f"{module}.weight_shape"))
        return rows, columns
    if f"{module}.weight" not in folder.files:
        folder.tensor(f"{module}.weight")  # raises, naming it
    rows, columns = folder.shape(f"{module}.weight")
    return rows, columns


def bits_per_weight(folder: ModelFolder, modules: Iterable[str]) -> float:
    """Bits on disk per weight over `modules`: their tensors with scales and zero points, without the mask file.

    Headers only. Raises CheckpointError for a module that the folder does not have.
    """
    names = list(modules)
    weights = sum(math.prod(module_shape(folder, module)) for module in names)
    return 8 * sum(module_bytes(folder, module) for module in names) / max(weights, 1)


def zeros_kept(folder: ModelFolder, packed_masks: Mapping[str, Tensor]) -> float:
    """The fraction of pruned positions (mask bit 0) whose weight in `folder`, float or INT4, is exactly 0; 1.0 where
    the masks prune nothing.

    packed_masks: module name → uint8 [out, ceil(in / 8)], `ModelFolder.packed_masks` of the pruned base. Raises
    CheckpointError for a module that the folder does not have, MismatchError for a mask of another shape.
    """
    pruned = zero = 0
    for module, packed in packed_masks.items():
        rows, columns = module_shape(folder, module)
        if packed.shape != (rows, -(-columns // 8)):
            raise MismatchError(
                f"mask of {module} is {tuple(packed.shape)} but its weight {(rows, columns)}: give its own mask"
            )
        positions = ~unpack_mask(packed, columns)  # [out, in]
        pruned += int(torch.count_nonzero(positions))
        zero += int(torch.count_nonzero(positions & (folder.weight(module) == 0)))
    return zero / pruned if pruned else 1.0
