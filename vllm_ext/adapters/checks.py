"""Can an adapter be served with this model? Its base by hashes and stamps, where both sides have them; its numbers.

One NaN in a forward pass stays in vLLM's cache, whose blocks other requests get next: they answer with nothing, and
with status 200. So an adapter is refused where it is loaded, by name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import CheckpointError, MismatchError, SQFTError
from sqft_plugins.identity import while_unchanged
from sqft_plugins.lora import kept_weight_is_the_bases, scaling_of
from sqft_plugins.mask import mask_hash
from vllm_ext.adapters.folder import WEIGHTS, AdapterFolder
from vllm_ext.adapters.header import KEPT, PREFIX


def check_base(folder: AdapterFolder, base: Path | None) -> None:
    """Raises MismatchError where the adapter was trained over another model.

    Compared are, as far as they are known: the weights of the base that PEFT saved along, the hash of the masks under
    the adapted modules (`mask_hash` of the adapter), and the stamp of the folder it was trained over, if that is still
    there. Names and shapes of the modules are checked in the worker, which has the model.
    """
    if base is None:
        return
    _check_kept(folder, base)
    if folder.config.get("mask_hash"):
        _check_masks(folder, base)
    trained = folder.config.get("base_model_name_or_path")
    ours, theirs = _stamped_hash(base), _stamped_hash(Path(str(trained))) if trained else None
    if ours and theirs and ours != theirs:
        raise MismatchError(
            f"adapter {folder.path.name} was trained over {trained}, which has other zeros than the served model (mask "
            f"{theirs[:12]}, served {ours[:12]}): serve that model, or train the adapter over this one"
        )


def _check_kept(folder: AdapterFolder, base: Path) -> None:
    model = ModelFolder(base)
    for module, tensor in folder.kept.items():
        with open_weights(folder) as handle:
            kept = handle.get_tensor(tensor)
        if kept_weight_is_the_bases(model, module, kept) is False:
            raise MismatchError(
                f"adapter {folder.path.name} carries a {module} of its own, {tensor}, and not the served model's: "
                "serve its own base, or merge it (`sqft merge`) and serve that"
            )


def _check_masks(folder: AdapterFolder, base: Path) -> None:
    masks = _masks(base)
    if not masks:
        return  # the served model carries no masks: nothing to compare with
    missing = [module for module in folder.modules if module not in masks]
    found = None if missing else mask_hash({module: masks[module] for module in folder.modules})
    wanted = str(folder.config["mask_hash"])
    if found != wanted:
        raise MismatchError(
            f"adapter {folder.path.name} was trained over a base with other zeros (mask {wanted[:12]}, served "
            f"{(found or 'none')[:12]}): serve its own base, {folder.config.get('base_model_name_or_path')}"
        )


@while_unchanged
def _masks(base: Path):
    return ModelFolder(base).masks


def _stamped_hash(path: Path) -> str | None:
    try:
        stamp = ModelFolder(path).stamp
    except (SQFTError, OSError, ValueError):
        return None  # a hub name, a folder that is gone, or no path at all
    return stamp.mask_hash if stamp else None


def check_values(folder: AdapterFolder, dtype: Any = None) -> None:
    """Raises CheckpointError for NaN and infinity, and SQFTError for numbers that `dtype`, in which they are served,
    does not hold; B is held with the scaling in it. dtype: torch's; anything else (vLLM's "auto") means float32."""
    name, dtype = folder.path.name, dtype if isinstance(dtype, torch.dtype) else torch.float32
    try:
        largest = largest_values(folder.path / WEIGHTS)
    except OSError as error:
        raise CheckpointError(f"adapter {name} was removed while it was read ({error})") from error

    for tensor, most in largest.items():
        if not math.isfinite(most):
            raise CheckpointError(
                f"adapter {name}: tensor {tensor} holds NaN or infinity, which would spoil the answers to others, too: "
                "train it again"
            )

        scale = 1.0  # in vLLM B has the scaling in it
        if "lora_B" in tensor or "lora_embedding_B" in tensor:
            module = tensor.removeprefix(PREFIX).partition(".lora_")[0]
            scale = max(1.0, abs(scaling_of(folder.config, module)))
        if not _fits(most * scale, dtype):
            raise SQFTError(
                f"adapter {name}: tensor {tensor} reaches {most * scale:.3g} with its scaling, {dtype} ends at "
                f"{torch.finfo(dtype).max:.3g}: serve it in another dtype (-- --dtype bfloat16), or train it again"
            )


@while_unchanged
def largest_values(weights: Path) -> dict[str, float]:
    """Tensor → the largest absolute value, NaN where one is. Raises CheckpointError."""
    with _open(weights) as handle:
        read = ((name, handle.get_tensor(name)) for name in sorted(handle.keys()) if not name.endswith(KEPT))
        return {name: float(tensor.double().abs().max()) for name, tensor in read if tensor.numel()}


def open_weights(folder: AdapterFolder) -> Any:
    """The adapter's tensors, to be used in a `with`. Raises CheckpointError."""
    return _open(folder.path / WEIGHTS)


def _open(weights: Path) -> Any:
    try:
        return safe_open(weights, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{weights.name} of adapter {weights.parent.name} is damaged or gone ({error}): copy the adapter again"
        ) from error


def _fits(value: float, dtype: torch.dtype) -> bool:
    return bool(torch.tensor(value, dtype=torch.float64).to(dtype).isfinite())
