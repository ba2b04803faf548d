"""INT4 models that are evaluated from their packed form (`--accelerate`): which can be, and how they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.attached import attach_grid, has_grid
from sqft_plugins.errors import KernelError
from sqft_plugins.kernels.accelerate import accelerate
from sqft_plugins.plugins.protocols import Tuner


def grid_of(model: Path, adapter: Path | None) -> Path | None:
    """The INT4 folder of a quantization-aware adapter of `model`; None for another one, or none."""
    if adapter is None:
        return None
    from sqft_plugins.adapter.saved import SavedAdapter

    return SavedAdapter(adapter).grid_over(model)


def check_packable(model: Path, grid: Path | None) -> None:
    """Raises KernelError for what has no INT4 layers. grid: of its quantization-aware adapter, None where it has none.
    Reads config.json alone."""
    if grid is None and ModelFolder(model).grid is None:
        raise KernelError(
            f"--accelerate: model {model} has no INT4 layers: leave it out, or give an INT4 folder (`sqft quantize`)"
        )


def accelerate_tuned(model: Any, tuner: Tuner, grid: Path | None) -> Any:
    """The model with its adapter at the rank in force, its INT4 layers packed. A dense adapter stays beside the packed
    base. A quantization-aware one (grid: its INT4 folder) is merged: at this rank, the model is INT4."""
    if grid is None:
        accelerate(model)
        return model
    merged, _ = tuner.merge(model)
    folder = ModelFolder(grid)
    assert folder.grid is not None
    for name in folder.int4.modules:  # over a float base nothing has told the layers their grid yet
        layer = merged.get_submodule(name)
        if not has_grid(layer):
            stored = folder.quantized(name)
            attach_grid(layer, folder.grid, stored.scale, stored.zero_point)
    accelerate(merged)
    return merged
