"""What changes for a run over a file, such as a GGUF file: it is trained through the grids of that file; and how an
adapter gets its codes, where nobody has said it.

A masked one rounds in each step, as the paper has it (QA-SparsePEFT). A dense one settles once, with compensation: a
delta of less than half a step changes no code where codes are rounded to nearest (docs/any-grid.md).
"""

from __future__ import annotations

from pathlib import Path

from sqft_plugins.adapter.lora_config import is_named
from sqft_plugins.checkpoint import ModelFile, ModelFolder, open_model
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.errors import SQFTError
from sqft_plugins.progress import say
from sqft_plugins.structure import structure_of_folder
from sqft_plugins.tune.settings import ALL_LINEAR, AdapterSettings


def open_base(
    model: str | Path, adapter: AdapterSettings, tuner: str, float_base: str | Path | None = None
) -> tuple[ModelFolder, AdapterSettings]:
    """The base of a run, and its settings: quantization-aware where `model` is a file, which it says.

    float_base: the float model of a file: it is the base then, and the file lends its grids.

    Raises SQFTError for a `float_base` of a model that is no file or that has codes itself, for settings that do not go
    with a file, and for a target module that the file does not hold on a grid.
    """
    opened = open_model(model)
    if not isinstance(opened, ModelFile):
        if float_base is not None:
            raise SQFTError(f"--base {float_base} is for a MODEL that is a file, {model} is none: give --grid {model}")
        if adapter.quantization_aware and not adapter.sparse and adapter.rounding is None:
            adapter = adapter.model_copy(update={"rounding": "compensated"})
        return opened, adapter

    if tuner != "sqft":  # a plain LoRA over the file's weights, which stays beside them
        if float_base is not None:
            raise SQFTError(f"--base {float_base} needs --tuner sqft: {tuner} knows no grid")
        return opened, adapter
    if adapter.grid is not None:
        raise SQFTError(f"--grid {adapter.grid} beside {model}: the file has its own grids, leave it out")
    grid = None if float_base is None else str(opened.path)
    changes = {"quantization_aware": True, "grid": grid, "rounding": adapter.rounding or "compensated"}
    adapter = AdapterSettings(**{**adapter.model_dump(), **changes})
    _check_grids(opened, adapter.target_modules)
    say(f"{opened.path}: trained through the grids of its own tensors (quantization-aware), so that it takes the merge")
    if float_base is None:
        return opened, adapter

    base = open_model(local_folder(float_base))
    if not opened.dense:
        raise SQFTError(
            f"--base {float_base}: {opened.path} is of a sparse model, and says of no zero that it was pruned: "
            "train over the INT4 folder that it was exported from, with --grid, or leave --base out"
        )
    if base.grid is not None:
        raise SQFTError(f"--base {float_base} has codes, not floats: give the float model, or leave it out")
    return base, adapter


def _check_grids(file: ModelFile, targets: list[str] | str) -> None:
    """Raises SQFTError for a target module whose tensor is of a type without a grid."""
    file.check_grids(name for name in structure_of_folder(file.path).shapes if _is_meant(targets, name))


def _is_meant(targets: list[str] | str, name: str) -> bool:
    return targets == ALL_LINEAR or is_named(targets, name)
