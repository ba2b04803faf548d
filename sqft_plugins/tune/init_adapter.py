"""A plain LoRA to begin from (`--init-adapter`): what its adapter must be, and what a run takes over from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.adapter.initialisations import CONVERT, changes_base
from sqft_plugins.errors import MismatchError, SQFTError
from sqft_plugins.structure import structure_of_folder
from sqft_plugins.tune.settings import AdapterSettings, TrainSettings


def begun_from(adapter: AdapterSettings, base: Path, training: TrainSettings) -> AdapterSettings:
    """The settings of an adapter that begins as `adapter.init_adapter`: its rank, alpha and target modules; unchanged
    where it begins anew. base: the model, whose layers it must fit.

    Raises SQFTError for an adapter that is no plain LoRA of one rank and one scaling over linear layers, for settings
    that say otherwise than it does, and for a run of no steps that begins anew; MismatchError for layers that the model
    does not have.
    """
    name = adapter.init_adapter
    if name is None:
        if training.steps == 0:
            raise SQFTError("steps=0 trains nothing: give --init-adapter, a LoRA to settle as it is, or more steps")
        return adapter
    folder = AdapterFolder(name)
    _check_plain(folder)
    _check_fits(folder, structure_of_folder(base).shapes)

    # one rank, one scaling
    ranks = {folder.pairs[module].rank for module in folder.linears}
    scalings = {folder.scaling(module) for module in folder.linears}
    for what, found in (("ranks (rank_pattern)", ranks), ("scalings (alpha_pattern)", scalings)):
        if len(found) > 1:
            raise SQFTError(f"--init-adapter {name} has several {what}, {sorted(found)}: give one with a single one")
    rank = ranks.pop()
    taken = {"rank": rank, "alpha": scalings.pop() * rank}

    for field, value in taken.items():
        if field in adapter.model_fields_set and getattr(adapter, field) != value:
            raise SQFTError(
                f"{field}={getattr(adapter, field):g} beside --init-adapter {name}, whose {field} is {value:g}: leave "
                "it out"
            )
    if "target_modules" in adapter.model_fields_set:
        raise SQFTError(f"--target-modules beside --init-adapter {name}, which names its own: leave it out")
    return AdapterSettings.make(
        {**adapter.part(AdapterSettings).model_dump(exclude_unset=True), **taken, "target_modules": folder.linears}
    )


def _check_plain(folder: AdapterFolder) -> None:
    """Raises SQFTError for whatever a LoRA of A and B over linear layers does not have."""
    shown = f"--init-adapter {folder.name}"
    if folder.method != "LORA":
        raise SQFTError(f"{shown} is {folder.method or 'of no type'}, not a plain LoRA: give an adapter of PEFT's")
    folder.check_config()
    if changes_base(init := folder.config.get("init_lora_weights", True)):
        raise SQFTError(f"{shown} has init_lora_weights={init!r}, which changed its base: {CONVERT}")
    if folder.others or folder.base_weights:
        other = (folder.others or list(folder.base_weights.values()))[0]
        raise SQFTError(f"{shown} has {other}, more than A and B of linear layers: train it again without")


def _check_fits(folder: AdapterFolder, shapes: Mapping[str, tuple[int, int]]) -> None:
    """shapes: module → (out, in), of the model. Raises MismatchError."""
    for module, pair in folder.pairs.items():
        if module not in shapes:
            raise MismatchError(
                f"--init-adapter {folder.name} adapts {module}, which is no layer of this model's blocks: give an "
                "adapter of this model"
            )
        if shapes[module] != (pair.outputs, pair.inputs):
            raise MismatchError(
                f"--init-adapter {folder.name} has {module} as {[pair.outputs, pair.inputs]}, the model as "
                f"{list(shapes[module])}: give an adapter of this model"
            )
