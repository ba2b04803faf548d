"""What decides a model's answers: the content of its files, adapter and rank, the settings, and the code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import sqft_plugins
from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.elastic import Rank, configuration
from sqft_plugins.identity import content_hash, hash_of_files
from sqft_plugins.kernels.library import FILE, library
from sqft_plugins.plugins.packages import installed

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "llama-cpp-python", "compressed-tensors")
PACKAGES = ("sqft_plugins", "peft_ext", "gguf_ext")


def identity(
    model: Path, options: Mapping[str, Any], adapter: Path | None = None, rank: Any = None, grid: Path | None = None
) -> dict[str, Any]:
    """A description that is equal where the answers must be. Reads every file of the model once; loads no weight.

    options: those of `open_session`; with `accelerate` the compiled kernels count, too.
    adapter, rank: an adapter folder over the model, and its rank in force (`rank_in_force`).
    grid: the INT4 folder of a quantization-aware adapter.
    """
    about: dict[str, Any] = {"model": content_hash(model), "options": dict(sorted(options.items()))}
    if adapter is not None:
        codes = None if grid is None else content_hash(grid)
        about |= {"adapter": adapter_hash(adapter), "rank": rank, "grid": codes}
    if options.get("accelerate") and library().handle is not None:
        about["kernels"] = content_hash(FILE)
    return about | {"libraries": installed(LIBRARIES), "code": code_hash()}


def adapter_hash(adapter: Path) -> str:
    """SHA-256 over the configuration and the weights of an adapter folder."""
    return hash_of_files(AdapterFolder(adapter).files, adapter)


@cache
def code_hash() -> str:
    """SHA-256 over the Python files of this project, so that a changed engine is not believed to answer as before."""
    root = Path(sqft_plugins.__file__).parents[1]
    return hash_of_files([file for name in PACKAGES for file in (root / name).rglob("*.py")], root)


def rank_in_force(saved: SavedAdapter, rank: Rank) -> Rank:
    """Module → rank: what a rank, a name such as "heuristic", or patterns mean for an elastic adapter. Of patterns the
    last one that matches a module counts. Of an adapter with one rank: the rank as it was asked for.

    Raises SQFTError for a rank outside the search space, and for a configuration with an unknown module or without one
    of the adapter's.
    """
    modules, choices = saved.search_space
    chosen = saved.choose_rank(rank)
    return configuration(chosen, modules, choices) if len(choices) > 1 else chosen
