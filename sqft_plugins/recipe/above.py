"""What stands above a step: the recipe's model and what earlier steps make, found by name or by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqft_plugins.elastic import Rank, parse_rank
from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.plugins import get_manager
from sqft_plugins.recipe.artefact import NOUN, Artefact, Kind, from_path, ranks_from_file

EXTRACTED = (0,)
"""The choices of a sub-adapter: one, whatever it is."""
MAKERS = {"model": "model", "adapter": "train", "ranks": "search", "file": "export"}


@dataclass(frozen=True)
class Chosen:
    """A rank: what the verb's function takes, or a search that will find it."""

    rank: Rank
    search: Artefact | None = None

    def read(self) -> Rank:
        """The rank; the search must have run by now."""
        return self.rank if self.search is None else ranks_from_file(str(self.search.path / "configuration.json"))


@dataclass(frozen=True)
class Above:
    """What one step may work on.

    name: of the step.
    names: of all steps of the recipe, for messages.
    made: step (or "base") → its artefact, of those above, in their order.
    out: the run folder.
    """

    name: str
    names: Sequence[str]
    made: Mapping[str, Artefact]
    out: Path

    def makes(self, kind: Kind, **facts: Any) -> Artefact:
        """What the step leaves in the run folder."""
        return Artefact(self.name, kind, self.out / self.name, **facts)

    def find(self, name: str | None, *kinds: Kind) -> Artefact:
        """The artefact of that name, a step's or a path's; without a name the last one above of these kinds. Raises
        SQFTError for a name of nothing, for a step below, and for an artefact of another kind."""
        if name is None:
            return self.last(*kinds)

        if name in self.made:
            found = self.made[name]
        elif name in self.names:
            where = "itself" if name == self.name else "below"
            raise SQFTError(f"{name!r} is {where}: a step works on what stands above it")
        elif Path(name).exists():
            found = from_path(Path(name))
        else:
            raise SQFTError(f"{name!r} is neither a step above nor a path: {nearest(name, self.made)}")

        if found.kind not in kinds:
            raise SQFTError(f"{name} is {NOUN[found.kind]}, {NOUN[kinds[0]]} is needed: name another")
        return found

    def last(self, *kinds: Kind) -> Artefact:
        """The last artefact above of these kinds. Raises SQFTError where no step makes one."""
        for artefact in reversed(list(self.made.values())):
            if artefact.kind in kinds:
                return artefact
        raise SQFTError(f"no step above makes {NOUN[kinds[0]]}: add {MAKERS[kinds[0]]} above, or name a folder")

    def float_model(self, name: str | None) -> Artefact:
        """Raises SQFTError for a model with codes."""
        model = self.find(name, "model")
        if model.int4:
            raise SQFTError(f"{model.name} has codes already: name a float model with model:")
        return model

    def tunable(self, name: str | None) -> Artefact:
        """What an adapter is trained over: a folder, or a file with codes. An exported file is meant by its name
        alone."""
        if name is not None:
            return self.find(name, "model", "file")
        made = {name: one for name, one in self.made.items() if not name.startswith("export")}
        return replace(self, made=made).last("model", "file")

    def elastic_adapter(self, name: str | None) -> Artefact:
        """Raises SQFTError for an adapter of a fixed rank."""
        adapter = self.find(name, "adapter")
        if len(adapter.choices) < 2:
            raise SQFTError(f"{adapter.name} has a fixed rank: give its train step rank_choices, such as [32, 24, 16]")
        return adapter

    def scored(self, name: str) -> Artefact:
        """What an eval names. Raises SQFTError for ranks and for an exported adapter, which have no score of their
        own."""
        found = self.made.get(name) or self.find(name, "model", "adapter", "ranks", "file", "part")
        if found.kind in ("ranks", "part"):
            raise SQFTError(f"{name} is {NOUN[found.kind]}, which has no score of its own: name a model or an adapter")
        return found

    def over(self, model: str | None, adapter: Artefact, grid: str | None) -> dict[str, Artefact]:
        """The adapter with the model that it is over and its grid; a section may name others."""
        base = self.find(model, "model", "file") if model else adapter.base
        codes = self.find(grid, "model") if grid else adapter.grid
        assert base is not None
        return {"model": base, "adapter": adapter, **({"grid": codes} if codes else {})}

    def rank(self, rank: Any, adapter: Artefact) -> Chosen:
        """The rank that a section gives; without one, that of the last search of this adapter, else the heuristic one,
        or the only one. Raises SQFTError for a rank that the adapter does not have."""
        if adapter.choices == EXTRACTED or (rank is None and len(adapter.choices) < 2):
            return Chosen("max")
        if rank is None:
            searches = [made for made in self.made.values() if made.kind == "ranks" and made.base == adapter]
            return Chosen("heuristic", searches[-1] if searches else None)
        if isinstance(rank, str) and (rank in self.made or rank in self.names):
            return Chosen("heuristic", self.find(rank, "ranks"))

        if isinstance(rank, str) and rank.endswith(".json"):
            rank = ranks_from_file(rank)
        searchers = {name for known in get_manager().hook.sqft_searchers() for name in known}
        for number in rank.values() if isinstance(rank, Mapping) else [rank]:
            if not (isinstance(number, str) and number in searchers):
                parse_rank(number, adapter.choices)
        return Chosen(rank)
