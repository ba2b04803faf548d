"""Numbers about a model folder, read one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.errors import MismatchError
from sqft_plugins.mask import lost_zeros, packed_mask_shape, unpack_mask
from sqft_plugins.structure import structure_of_folder


def module_weight(folder: ModelFolder, module: str) -> Tensor:
    """One module's weight [out, in]: dequantized to float32, or as stored, a Conv1D turned round.

    Raises CheckpointError for a module that the folder does not have and for a config that transformers does not know.
    """
    if module in folder.quantized_modules:
        return folder.quantized(module).dequantize()
    weight = folder.weight(module)
    return weight.t() if module in structure_of_folder(folder.path).transposed else weight


def module_bytes(folder: ModelFolder, module: str) -> int:
    """Bytes on disk of one module's weight, in whatever format: with scales and zero points, without the mask file."""
    return sum(folder.nbytes(name) for name in folder.parts(module))


def module_shape(folder: ModelFolder, module: str) -> tuple[int, int]:
    """(out, in) of one module's weight, float (a Conv1D as it is stored: [in, out]) or INT4."""
    if module in folder.quantized_modules:
        return folder.quantized_shape(module)
    rows, columns = folder.spec(folder.weight_name(module)).shape
    return rows, columns


def bits_per_weight(folder: ModelFolder, modules: Iterable[str]) -> float:
    """Bits on disk per weight over `modules`: their tensors with scales and zero points, without the mask file.

    Raises CheckpointError for a module that the folder does not have.
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
    pruned = lost = 0
    for module, packed in packed_masks.items():
        weight = module_weight(folder, module)
        if packed.shape != packed_mask_shape(weight.shape):
            raise MismatchError(
                f"mask of {module} is {tuple(packed.shape)} but its weight {tuple(weight.shape)}: give its own mask"
            )
        mask = unpack_mask(packed, weight.shape[1])  # [out, in]
        pruned += mask.numel() - int(mask.sum())
        lost += lost_zeros(weight, mask)
    return (pruned - lost) / pruned if pruned else 1.0
