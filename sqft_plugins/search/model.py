"""The model of a search: loaded when it is first needed, once, and switched from rank to rank in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.checkpoint import load_model, load_tokenizer, open_model
from sqft_plugins.errors import KernelError, SQFTError
from sqft_plugins.evaluate.accelerated import accelerate_tuned, check_packable
from sqft_plugins.evaluate.identity import adapter_hash
from sqft_plugins.hardware import on_fast_device, parse_dtype
from sqft_plugins.identity import content_hash
from sqft_plugins.kernels.library import library
from sqft_plugins.progress import say
from sqft_plugins.search.objective import Objective, Prepared

_LONGEST = ("max_position_embeddings", "n_positions", "seq_length")


class SearchedModel:
    """A base with its super-adapter.

    grid: as for `Tuner.load`.
    dtype: "fast" (for this machine), "auto" (as stored) or a torch name.
    accelerate: INT4 layers of the base run from their packed form.

    Raises KernelError where `accelerate` finds no INT4 layer, or an adapter that has other codes at every rank.
    """

    def __init__(
        self, base: str | Path, adapter: SavedAdapter, grid: Path | None, dtype: str, accelerate: bool = False
    ):
        self.folder, self.adapter, self.tuner, self.grid = open_model(base), adapter, adapter.tuner, grid
        self.dtype, self.accelerate = parse_dtype(dtype), accelerate
        self.runs = 0

        if accelerate and adapter.grid_over(self.folder.path) is not None:
            raise KernelError(
                f"--accelerate: {adapter} is quantization-aware, every rank has other codes and would be packed anew: "
                "leave it out here, and evaluate what is found with `sqft eval --accelerate`"
            )
        if accelerate:
            check_packable(self.folder.path, None)

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.folder.path)

    @cached_property
    def tuned(self) -> Any:
        say(f"loading {self.folder.path} with {self.adapter}")
        model = load_model(self.folder.path, self.dtype)
        tuned = self.tuner.load(model, self.adapter.path, self.grid).eval()
        return on_fast_device(accelerate_tuned(tuned, self.tuner, None) if self.accelerate else tuned)

    def scores(self, ranks: Mapping[str, int], objective: Objective, prepared: Prepared) -> list[float]:
        """The score of each question with these ranks, module → rank."""
        self.tuner.set_rank(self.tuned, dict(ranks))
        self.runs += 1
        found = objective.scores(self.tuned, self.tokenizer, prepared)

        for item, score in zip(prepared.items, found, strict=True):
            if not math.isfinite(score):
                raise SQFTError(
                    f"the score of {item.prompt[:40]!r} is {score} with the ranks {sorted(set(ranks.values()))}: "
                    "look for broken tensors with `sqft inspect`, or give --dtype float32"
                )
        return found

    @property
    def context(self) -> int:
        """Tokens that the model can read at once, as its config says; 2048 where it does not."""
        config = {**self.folder.config, **self.folder.config.get("text_config", {})}
        return next((config[key] for key in _LONGEST if isinstance(config.get(key), int)), 2048)

    def identity(self) -> dict[str, str]:
        """What makes its scores: the contents of the adapter and of the model (with the grid's folder)."""
        grid = self.grid or self.adapter.grid_over(self.folder.path)
        folders = [self.folder.path, *([grid] if grid not in (None, self.folder.path) else [])]
        return {
            "adapter": adapter_hash(self.adapter.path),
            "model": " ".join(map(content_hash, folders)),
            "dtype": str(self.dtype).removeprefix("torch.") + (f", {library().path} kernel" if self.accelerate else ""),
        }
