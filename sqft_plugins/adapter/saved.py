"""A saved adapter with the plug-in that reads its type: loaded over a base, at a rank."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqft_plugins.adapter.folder import AdapterFolder
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.recode import Recoded
from sqft_plugins.configurations import saved_configuration, saved_configurations
from sqft_plugins.plugins import get_manager

if TYPE_CHECKING:
    from sqft_plugins.elastic import Rank
    from sqft_plugins.plugins.protocols import Tuner

CHAT_TEMPLATE = "chat_template.jinja"
"""Where transformers looks for it first."""


def choose_rank(rank: Rank, adapter: Path, search_space: Callable[[], tuple[Sequence[str], Sequence[int]]]) -> Rank:
    """Module → rank behind the name of a rank that a plug-in offers ("heuristic", "max", …), or of a configuration that
    the adapter's folder carries; numbers and mappings as they are. search_space: (modules, the ranks of each)."""
    if not isinstance(rank, str):
        return rank
    for searchers in get_manager().hook.sqft_searchers():
        if rank in searchers:
            modules, choices = search_space()
            return rank if len(choices) == 1 else searchers[rank](modules, choices)
    return saved_configuration(adapter, rank) if rank in saved_configurations(adapter) else rank


class SavedAdapter:
    """An adapter folder and its tuner. Raises CheckpointError for a path that is no adapter folder, and SQFTError,
    naming the tuners there are, for an adapter of a type that none of them reads."""

    def __init__(self, path: str | Path):
        self.folder = AdapterFolder(path)
        self.path = self.folder.path
        self.tuner: Tuner = get_manager().get("sqft_tuners", self.folder.method.lower(), f"adapter {path} of type")

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def search_space(self) -> tuple[Sequence[str], Sequence[int]]:
        """(the adapted modules, the ranks that each may have: one where the rank is fixed)."""
        return self.tuner.search_space(self.path)

    def grid_over(self, base: Path) -> Path | None:
        """The INT4 folder of a quantization-aware adapter of the model folder `base`; None for any other adapter."""
        return self.tuner.grid_of(self.path, base)

    def choose_rank(self, rank: Rank) -> Rank:
        """As the function of that name."""
        return choose_rank(rank, self.path, lambda: self.search_space)

    def load(self, model: Any, rank: Rank, grid: Path | None = None) -> tuple[Any, Mapping[str, int]]:
        """(`model` with the adapter, at `rank`; module → rank). grid: as for `Tuner.load`."""
        tuned = self.tuner.load(model, self.path, grid)
        ranks = dict(self.tuner.set_rank(tuned, self.choose_rank(rank)))
        if self.folder.settles and hasattr(self.tuner, "check_settled"):
            self.tuner.check_settled(tuned)
        return tuned, ranks

    def recoded(self, int4: ModelFolder, tuned: Any, merged: bool = True) -> Recoded:
        """The INT4 folder with the codes of a quantization-aware adapter that is loaded, at the rank in force; `merged`
        False: with those of its base alone."""
        weights = self.tuner.quantized(tuned, merged=merged)
        return Recoded(int4, {module: weight.codes.cpu() for module, weight in weights.items()})

    def copy_chat_template(self, target: Path) -> None:
        """The chat template that the adapter was trained with, where that is not the base's own."""
        if (self.path / CHAT_TEMPLATE).is_file():
            shutil.copyfile(self.path / CHAT_TEMPLATE, target / CHAT_TEMPLATE)
