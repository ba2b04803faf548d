"""INT4 models that are evaluated from their packed form (`--accelerate`): which can be, and how they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.attached import attach_grid, has_grid
from sqft_plugins.errors import KernelError
from sqft_plugins.grid import require_int4
from sqft_plugins.kernels.accelerate import accelerate
from sqft_plugins.model_files import reader_of
from sqft_plugins.plugins.protocols import Tuner


def check_packable(model: Path, grid: Path | None) -> None:
    """Raises KernelError for a model without INT4 layers; reads config.json alone. grid: the INT4 folder of the model's
    quantization-aware adapter, None without one."""
    for path in (model, grid):
        if path is not None and reader_of(path) is not None:
            raise KernelError(f"--accelerate: {path} is a file, the packed form is made of INT4 folders: leave it out")
    if grid is None and ModelFolder(model).grid is None:
        raise KernelError(
            f"--accelerate: model {model} has no INT4 layers: leave it out, or give an INT4 folder (`sqft quantize`)"
        )
    codes = ModelFolder(model if grid is None else grid)
    if codes.grid is not None:
        require_int4(codes.grid.kind, f"--accelerate: model {codes.path}", "the packed form")


def accelerate_tuned(model: Any, tuner: Tuner, grid: Path | None) -> Any:
    """The model with its adapter at the rank in force, its INT4 layers packed.

    grid: the INT4 folder of a quantization-aware adapter. Such an adapter is merged, for at this rank the model is
    INT4. None for a dense adapter, which stays beside the packed base.
    """
    if grid is None:
        accelerate(model)
        return model

    merged, _ = tuner.merge(model)
    folder = ModelFolder(grid)
    for name in folder.int4.modules:  # over a float base the layers do not have their grid yet
        layer = merged.get_submodule(name)
        if not has_grid(layer):
            stored = folder.quantized(name)
            attach_grid(layer, folder.int4.grid, stored.scale, stored.zero_point)
    accelerate(merged)
    return merged
