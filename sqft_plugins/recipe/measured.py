"""The numbers of an artefact: sparsity, bits a weight, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.checkpoint import ModelFolder, open_model
from sqft_plugins.measure import sizes, zeros_kept
from sqft_plugins.plugins import get_manager
from sqft_plugins.recipe.artefact import Artefact
from sqft_plugins.structure import structure_of_folder


def folder_numbers(path: Path) -> dict[str, Any]:
    """sparsity: of the mask, None without one. zeros_kept: of the pruned weights, the fraction that is exactly 0.
    bits_per_weight: on disk, of the linear layers. bytes: of the weight files."""
    folder = open_model(path)
    masks = folder.masks
    return {
        "sparsity": folder.stamp.sparsity if folder.stamp else None,
        "zeros_kept": zeros_kept(folder, masks) if masks else None,
        **sizes(folder, modules_of(folder)),
    }


def adapter_numbers(adapter: Path, base: Path) -> dict[str, Any]:
    """Those of the base with the adapter beside it: the stored weights, and the adapter's bytes on top."""
    folder = open_model(base)
    return {
        "sparsity": folder.stamp.sparsity if folder.stamp else None,
        "zeros_kept": None,  # of the base, which the adapter does not change
        **sizes(folder, modules_of(folder), AdapterFolder(adapter).weight_bytes),
    }


def file_numbers(format_name: str, model: Artefact | None, files: Sequence[Path]) -> dict[str, Any]:
    """What the exporter's own check finds, where it has one; bytes: of all parts. files: one, or all parts in order."""
    exporter = get_manager().get("sqft_exporters", format_name, "format")
    there = all(file.is_file() for file in files)
    size = sum(file.stat().st_size for file in files) if there else None
    numbers: dict[str, Any] = {"sparsity": None, "zeros_kept": None, "bits_per_weight": None, "bytes": size}
    if model is not None and there and hasattr(exporter, "verify"):
        stamp, report = ModelFolder(model.path).stamp, exporter.verify(model.path, files[0])
        numbers |= {key: report[key] for key in ("zeros_kept", "bits_per_weight")}
        numbers["sparsity"] = stamp.sparsity if stamp else None
    return numbers


def modules_of(folder: ModelFolder) -> list[str]:
    """The linear layers that are meant: those with a mask, else all of the decoder blocks."""
    return list(folder.masks) or list(structure_of_folder(folder.path).shapes)
