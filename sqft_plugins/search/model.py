"""The model of a search: loaded when it is first needed, once, and switched from rank to rank in place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sqft_plugins.checkpoint import ModelFolder, load_model, load_tokenizer
from sqft_plugins.errors import SQFTError
from sqft_plugins.hardware import fast_dtype
from sqft_plugins.plugins.protocols import Tuner
from sqft_plugins.progress import say
from sqft_plugins.search.objective import Objective, Prepared

_LONGEST = ("max_position_embeddings", "n_positions", "seq_length")


class SearchedModel:
    """A base with its super-adapter. grid: as for `Tuner.load`. dtype: "fast" (for this machine), "auto" (as stored) or
    a torch name."""

    def __init__(self, base: str | Path, adapter: Path, tuner: Tuner, grid: Path | None, dtype: str):
        self.folder, self.adapter, self.tuner, self.grid = ModelFolder(base), adapter, tuner, grid
        self.dtype = parse_dtype(dtype)
        self.runs = 0

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.folder.path)

    @cached_property
    def tuned(self) -> Any:
        say(f"loading {self.folder.path} with {self.adapter}")
        model = load_model(self.folder.path, self.dtype)
        return self.tuner.load(model, self.adapter, self.grid).eval()

    def scores(self, ranks: Mapping[str, int], objective: Objective, prepared: Prepared) -> list[float]:
        """The score of each question with these ranks, module → rank."""
        self.tuner.set_rank(self.tuned, dict(ranks))
        self.runs += 1
        return objective.scores(self.tuned, self.tokenizer, prepared)

    @property
    def context(self) -> int:
        """Tokens that the model can read at once, as its config says; 2048 where it does not."""
        config = {**self.folder.config, **self.folder.config.get("text_config", {})}
        return next((config[key] for key in _LONGEST if isinstance(config.get(key), int)), 2048)

    def identity(self) -> dict[str, str]:
        """What makes its scores: SHA-256 of all bytes of the adapter and of the model (with the grid's folder)."""
        grid = self.grid or self.tuner.grid_of(self.adapter, self.folder.path)
        folders = [self.folder, *([ModelFolder(grid)] if grid not in (None, self.folder.path) else [])]
        weights = [file for folder in folders for file in sorted(set(folder.files.values()))]
        configs = [folder.path / "config.json" for folder in folders]
        parts = [self.adapter / name for name in ("adapter_config.json", "adapter_model.safetensors")]
        return {
            "adapter": _digest(parts),
            "model": _digest([*configs, *weights]),
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def parse_dtype(name: str) -> torch.dtype | str:
    """Raises SQFTError for a name that is no dtype of torch."""
    if name == "fast":
        return fast_dtype()
    found = "auto" if name == "auto" else getattr(torch, name, None)
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise SQFTError(f"--dtype {name!r} is no float type: use fast, auto, float32, bfloat16 or float16")
    return found


def _digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()
