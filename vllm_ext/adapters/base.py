"""Does an adapter belong to the model that is served? Told by hashes and stamps, where both sides carry them."""

from __future__ import annotations

from pathlib import Path

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import MismatchError, SQFTError
from sqft_plugins.identity import while_unchanged
from sqft_plugins.lora import kept_weight_is_the_bases
from sqft_plugins.mask import mask_hash
from vllm_ext.adapters.folder import AdapterFolder
from vllm_ext.adapters.values import open_weights


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
