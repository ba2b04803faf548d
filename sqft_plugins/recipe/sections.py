"""The sections of a recipe: one a step, with the options of its verb (`sqft_plugins.settings`) and what it works on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, get_args

from pydantic import ConfigDict, Field

from sqft_plugins.compress.settings import PruneSettings, QuantizeSettings
from sqft_plugins.evaluate.settings import EvalSettings
from sqft_plugins.search.settings import SearchInputs, SearchSettings
from sqft_plugins.settings import Mark, Settings
from sqft_plugins.tune.settings import AdapterSettings, TrainInputs, TrainSettings

Model = Annotated[
    str | None,
    "model",
    Field(
        description="What it works on: a step above, base (the recipe's model), or a folder. Default: the last one "
        "above that fits."
    ),
]
Adapter = Annotated[
    str | None, "adapter", Field(description="The adapter: a step above, or a folder. Default: the last one above.")
]
Grid = Annotated[
    str | None,
    "model",
    Field(description="The INT4 model of a quantization-aware adapter over a float one: a step above, or a folder."),
]
Rank = Annotated[
    int | str | dict[str, int] | None,
    "rank",
    Field(
        description="heuristic (the median), max, min, a number, a step of search, a JSON file, or module → rank. "
        "Default: that of the last search of this adapter above, else heuristic."
    ),
]


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
    model: Model = None


class Quantize(QuantizeSettings, Section):
    verb = "quantize"
    model: Model = None


class Train(AdapterSettings, TrainSettings, TrainInputs, Section):
    verb = "train"
    instead = {"steps": "epochs", "epochs": "steps"}  # noqa: RUF012 (a ClassVar in the base)
    model: Model = None
    grid: Grid = None


class Search(SearchSettings, SearchInputs, Section):
    verb = "search"
    instead = {"data": "task", "task": "data"}  # noqa: RUF012
    model: Model = None
    adapter: Adapter = None
    grid: Grid = None


class Extract(Section):
    verb = "extract"
    adapter: Adapter = None
    rank: Rank = None


class Merge(Section):
    verb = "merge"
    model: Model = None
    adapter: Adapter = None
    rank: Rank = None
    grid: Grid = None


class Eval(EvalSettings, Section):
    verb = "eval"
    model: Annotated[str | list[str] | None, "model"] = Field(
        default=None,
        description="What to score: a step or a folder, or several of them. An adapter is scored over its base.",
    )
    rank: Rank = None

    @property
    def targets(self) -> list[str]:
        return [self.model] if isinstance(self.model, str) else list(self.model or [])


class Export(Section):
    """Its other keys are the options of `sqft export FORMAT`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    verb = "export"
    format: str = Field(default="gguf", description="A format of `sqft export`; its options are keys here, too.")
    model: Model = None
    adapter: Adapter = None

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
