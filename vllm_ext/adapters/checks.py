"""Can an adapter be served with this model? Its base by hashes and stamps, where both sides have them; its numbers.

One NaN in a forward pass stays in vLLM's cache, whose blocks other requests get next: they answer with nothing, and
with status 200. So an adapter is refused where it is loaded, by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sqft_plugins.adapter.folder import AdapterFolder
from sqft_plugins.adapter.tensor_names import BASE_WEIGHT, is_b, module_of
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import CheckpointError, MismatchError, SQFTError
from sqft_plugins.identity import while_unchanged
from sqft_plugins.mask import mask_hash


def check_base(folder: AdapterFolder, base: Path | None) -> None:
    """Raises MismatchError where the adapter was trained over another model.

    Compared are, as far as they are known: the weights of the base that PEFT saved along, the hash of the masks under
    the adapted modules (`mask_hash` of the adapter), and the stamp of the folder it was trained over, if that is still
    there. Names and shapes of the modules are checked in the worker, which has the model.
    """
    if base is None:
        return
    for module in folder.foreign_weights(ModelFolder(base)):
        raise MismatchError(
            f"adapter {folder.name} carries a {module} of its own, {folder.base_weights[module]}, and not the served "
            "model's: serve its own base, or merge it (`sqft merge`) and serve that"
        )
    if folder.mask_hash:
        _check_masks(folder, base, str(folder.mask_hash))

    trained = folder.base
    ours, theirs = _stamped_hash(base), _stamped_hash(Path(trained)) if trained else None
    if ours and theirs and ours != theirs:
        raise MismatchError(
            f"adapter {folder.name} was trained over {trained}, which has other zeros than the served model (mask "
            f"{theirs[:12]}, served {ours[:12]}): serve that model, or train the adapter over this one"
        )


def _check_masks(folder: AdapterFolder, base: Path, wanted: str) -> None:
    masks = _masks(base)
    if not masks:
        return  # the served model carries no masks: nothing to compare with
    missing = [module for module in folder.pairs if module not in masks]
    found = None if missing else mask_hash({module: masks[module] for module in folder.pairs})
    if found != wanted:
        raise MismatchError(
            f"adapter {folder.name} was trained over a base with other zeros (mask {wanted[:12]}, served "
            f"{(found or 'none')[:12]}): serve its own base, {folder.base}"
        )


@while_unchanged
def _masks(base: Path) -> Mapping[str, torch.Tensor]:
    return ModelFolder(base).masks


def _stamped_hash(path: Path) -> str | None:
    try:
        stamp = ModelFolder(path).stamp
    except (SQFTError, OSError, ValueError):
        return None  # a hub name, a folder that is gone, or no path at all
    return stamp.mask_hash if stamp else None


def check_values(folder: AdapterFolder, dtype: Any = None, strength: float = 1.0) -> None:
    """Raises CheckpointError for NaN and infinity, and SQFTError for numbers that `dtype`, in which they are served,
    does not hold; B is held with the scaling and the strength in it. dtype: torch's; anything else (vLLM's "auto")
    means float32."""
    name, dtype = folder.name, dtype if isinstance(dtype, torch.dtype) else torch.float32
    try:
        largest = largest_values(folder.weights)
    except OSError as error:
        raise CheckpointError(f"adapter {name} was removed while it was read ({error})") from error

    for tensor, most in largest.items():
        if not math.isfinite(most):
            raise CheckpointError(
                f"adapter {name}: tensor {tensor} holds NaN or infinity, which would spoil the answers to others, too: "
                "train it again"
            )

        # in vLLM B has both in it
        scaling = abs(folder.scaling(module_of(tensor))) if is_b(tensor) else 1.0
        scale = max(1.0, scaling, scaling * abs(strength)) if is_b(tensor) else 1.0
        if not _fits(most * scale, dtype):
            raise SQFTError(
                f"adapter {name}: tensor {tensor} reaches {most * scale:.3g} with its scaling, {dtype} ends at "
                f"{torch.finfo(dtype).max:.3g}: serve it in another dtype (-- --dtype bfloat16), or train it again"
            )


@while_unchanged
def largest_values(weights: Path) -> dict[str, float]:
    """Tensor → the largest absolute value, NaN where one is. Raises CheckpointError."""
    read = (
        (name, tensor)
        for name, tensor in AdapterFolder(weights.parent, weights.parent.name).read()
        if not name.endswith(BASE_WEIGHT)
    )
    return {name: float(tensor.double().abs().max()) for name, tensor in read if tensor.numel()}


def _fits(value: float, dtype: torch.dtype) -> bool:
    return bool(torch.tensor(value, dtype=torch.float64).to(dtype).isfinite())
