"""The sections of a recipe: one a step, with the options of its verb (`sqft_plugins.settings`) and what it works on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from pydantic import ConfigDict

from sqft_plugins.compress.settings import PruneSettings, QuantizeSettings
from sqft_plugins.evaluate.settings import EvalSettings
from sqft_plugins.search.settings import SearchInputs, SearchSettings
from sqft_plugins.settings import Mark, Settings, option
from sqft_plugins.tune.settings import AdapterSettings, TrainInputs, TrainSettings

MODEL = option(
    None,
    "What it works on: a step above, base (the recipe's model), or a folder. Default: the last one above that fits.",
    "model",
)
ADAPTER = option(None, "The adapter: a step above, or a folder. Default: the last one above.", "adapter")
GRID = option(
    None, "The quantized model of a quantization-aware adapter over a float one: a step above, or a folder.", "model"
)
RANK = option(
    None,
    "heuristic (the median), max, min, a number, a step of search, a JSON file, or module → rank. Default: that of the "
    "last search of this adapter above, else heuristic.",
    "rank",
)
Rank = int | str | dict[str, int]


class Section(Settings):
    """What every section has. verb: what it does. instead: options of which a section has one, so that a later file's
    takes the place of an earlier one's other."""

    verb: ClassVar[str]
    instead: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def marks(cls, values: Mapping[str, Any]) -> dict[str, Mark]:
        """Key → its mark, of the keys that have a mark, in a section with these values."""
        known = get_args(Mark)
        found = {name: [mark for mark in field.metadata if mark in known] for name, field in cls.model_fields.items()}
        return {name: marks[0] for name, marks in found.items() if marks}


class Prune(PruneSettings, Section):
    verb = "prune"
    model: str | None = MODEL


class Quantize(QuantizeSettings, Section):
    verb = "quantize"
    model: str | None = MODEL


class Train(AdapterSettings, TrainSettings, TrainInputs, Section):
    verb = "train"
    instead = {"steps": "epochs", "epochs": "steps"}  # noqa: RUF012 (a ClassVar in the base)
    model: str | None = MODEL
    grid: str | None = GRID


class Search(SearchSettings, SearchInputs, Section):
    verb = "search"
    instead = {"data": "task", "task": "data"}  # noqa: RUF012
    model: str | None = MODEL
    adapter: str | None = ADAPTER
    grid: str | None = GRID


class Extract(Section):
    verb = "extract"
    adapter: str | None = ADAPTER
    rank: Rank | None = RANK


class Merge(Section):
    verb = "merge"
    model: str | None = MODEL
    adapter: str | None = ADAPTER
    rank: Rank | None = RANK
    grid: str | None = GRID


class Eval(EvalSettings, Section):
    verb = "eval"
    model: str | list[str] | None = option(
        None, "What to score: a step or a folder, or several of them. An adapter is scored over its base.", "model"
    )
    rank: Rank | None = RANK

    @property
    def targets(self) -> list[str]:
        return [self.model] if isinstance(self.model, str) else list(self.model or [])


class Export(Section):
    """Its other keys are the options of `sqft export FORMAT`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    verb = "export"
    format: str = option("gguf", "A format of `sqft export`; its options are keys here, too.")
    model: str | None = MODEL
    adapter: str | None = ADAPTER

    @classmethod
    def marks(cls, values: Mapping[str, Any]) -> dict[str, Mark]:
        from sqft_plugins.recipe.export import path_names

        paths: dict[str, Mark] = dict.fromkeys(path_names(values.get("format", "gguf")), "file")
        return paths | ({"base": "model"} if "base" in paths else {}) | super().marks(values)

    @classmethod
    def keys(cls, values: Mapping[str, Any]) -> list[str]:
        from sqft_plugins.recipe.export import parameters

        return sorted({*cls.model_fields, *parameters(values.get("format", "gguf"))})


SECTIONS: dict[str, type[Section]] = {
    section.verb: section for section in (Prune, Quantize, Train, Search, Extract, Merge, Eval, Export)
}
"""Verb → its section, in the order of the paper's way."""
