"""The sections of a recipe: one a step, with the options of its verb under the names that its function has.

What an option means stands in the help of the verb, and nowhere else: `schema.py` reads it from there. Defaults are the
verb's; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import ConfigDict, Field

from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.search.settings import SearchSettings
from sqft_plugins.tune.settings import AdapterSettings, Settings, TrainSettings

Mark = Literal["model", "adapter", "rank", "file", "name or file", "place"]
"""What a text stands for. model, adapter: a step or a folder. rank: a rank, a step of `search`, or a JSON file. file:
a path to read. name or file: a path where there is one, else the name of something. place: a path to write to."""

Model = Annotated[str | None, "model"]
Adapter = Annotated[str | None, "adapter"]
File = Annotated[str | None, "file"]
Name = Annotated[str | None, "name or file"]
Rank = Annotated[int | str | dict[str, int] | None, "rank"]


class Section(Settings):
    """What every section has. verb: what it does. makes: what its output is for the steps after it. instead: options of
    which a section has one, so that a later file's takes the place of an earlier one's other."""

    verb: ClassVar[str]
    instead: ClassVar[Mapping[str, str]] = {}
    makes: ClassVar[Literal["model", "adapter", "ranks", "file", "scores"]]

    @classmethod
    def marks(cls, values: Mapping[str, Any]) -> dict[str, Mark]:
        """Key → its mark, of those that have one, in a section with these values."""
        known = get_args(Mark)
        found = {name: [m for m in field.metadata if m in known] for name, field in cls.model_fields.items()}
        return {name: marks[0] for name, marks in found.items() if marks}

    @classmethod
    def options(cls, values: Mapping[str, Any]) -> list[str]:
        """The keys that a section with these values may have."""
        return list(cls.model_fields)


class CalibrationSection(Section):
    calibration: Name = None
    sequences: int = Field(32, ge=1)
    length: int = Field(128, ge=2)
    exclude: list[str] = Field(default_factory=list)


class Prune(CalibrationSection):
    verb, makes = "prune", "model"
    model: Model = None
    sparsity: float | str
    sparsity_of: dict[str, float | str] = Field(default_factory=dict)
    method: str = "wanda"


class Quantize(CalibrationSection):
    verb, makes = "quantize", "model"
    model: Model = None
    method: str = "round-to-nearest"
    group_size: int = 32
    symmetric: bool = Field(True, description="False: a zero point for each group.")


class Train(AdapterSettings, TrainSettings, Section):
    verb, makes = "train", "adapter"
    instead = {"steps": "epochs", "epochs": "steps"}  # noqa: RUF012 (a ClassVar in the base)
    model: Model = None
    data: Annotated[str | list[str], "file"]
    eval_data: Annotated[str | list[str], "file"] = Field(default_factory=list)
    tuner: str = "sqft"
    grid: Model = None
    text: Name = None
    chat_template: File = None
    tensorboard: Annotated[str | None, "place"] = None
    sparse: bool = Field(True, description="Mask the delta. False trains like LoRA, but a merge would fill the zeros.")

    def adapter_settings(self, grid: str | None) -> AdapterSettings:
        """grid: the folder, in place of the step's name."""
        return AdapterSettings.make(self._of(AdapterSettings) | {"grid": grid})

    def train_settings(self) -> TrainSettings:
        return TrainSettings.make(self._of(TrainSettings))

    def examples(self, argument: Literal["data", "eval_data"]) -> list[Any]:
        """The lines of one file or of several. Raises SQFTError naming file and line."""
        from sqft_plugins.tune.data import read_examples

        files = getattr(self, argument)
        files = [files] if isinstance(files, str) else files
        return [example for file in files for example in read_examples(file, argument)]

    def general_text(self) -> list[Any]:
        """What is mixed into the batches; [] where nothing is. Raises SQFTError."""
        from sqft_plugins.compress.calibration import calibration_texts
        from sqft_plugins.tune.data import text_examples

        return text_examples(calibration_texts(self.text)) if self.text_fraction else []

    def _of(self, settings: type[Settings]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in settings.model_fields if name in self.model_fields_set}


class Search(SearchSettings, Section):
    verb, makes = "search", "ranks"
    instead = {"data": "task", "task": "data"}  # noqa: RUF012
    model: Model = None
    adapter: Adapter = None
    data: File = None
    task: str | None = None
    starts: Annotated[list[str], "file"] = Field(default_factory=list)
    grid: Model = None
    save: str | None = None

    def settings(self) -> SearchSettings:
        return SearchSettings.make({name: getattr(self, name) for name in SearchSettings.model_fields})


class Extract(Section):
    verb, makes = "extract", "adapter"
    adapter: Adapter = None
    rank: Rank = None


class Merge(Section):
    verb, makes = "merge", "model"
    model: Model = None
    adapter: Adapter = None
    rank: Rank = None
    grid: Model = None


class Eval(Section):
    verb, makes = "eval", "scores"
    model: Annotated[str | list[str] | None, "model"] = Field(
        None, description="What to score: a step or a folder, or several of them. An adapter is scored over its base."
    )
    rank: Rank = None
    task: Annotated[str | list[str], "name or file"] = Field(default_factory=list)
    data: File = None
    data_dir: File = None
    limit: int | None = Field(None, ge=1)
    shots: int | None = Field(None, ge=0)
    seed: int = 1234
    text: File = None
    perplexity: bool = True
    dtype: str | None = None
    accelerate: bool = False
    threads: int | None = Field(None, ge=1)
    batch_size: int = Field(64, ge=1)

    @property
    def targets(self) -> list[str]:
        return [self.model] if isinstance(self.model, str) else list(self.model or [])

    @property
    def tasks(self) -> list[str]:
        """As `sqft eval`: word problems where neither a task nor data are given."""
        named = [self.task] if isinstance(self.task, str) else list(dict.fromkeys(self.task))
        return named or ([] if self.data else ["word-problems"])


class Export(Section):
    """Its other keys are the options of `sqft export FORMAT`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    verb, makes = "export", "file"
    format: str = Field("gguf", description="A format of `sqft export`; its options are keys here, too.")
    model: Model = None
    adapter: Adapter = None

    @classmethod
    def marks(cls, values: Mapping[str, Any]) -> dict[str, Mark]:
        from sqft_plugins.recipe.export import path_names

        paths: dict[str, Mark] = dict.fromkeys(path_names(values.get("format", "gguf")), "file")
        return paths | ({"base": "model"} if "base" in paths else {}) | super().marks(values)

    @classmethod
    def options(cls, values: Mapping[str, Any]) -> list[str]:
        from sqft_plugins.recipe.export import option_names

        return sorted({*cls.model_fields, *option_names(values.get("format", "gguf"))})

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Self:
        known = cls.options(values)
        for key in values:
            if key not in known:
                raise SQFTError(f"{cls.__name__} has no key {key!r}: {nearest(key, known)}")
        return (
            super()
            .make({key: value for key, value in values.items() if key in cls.model_fields})
            .model_copy(update={key: value for key, value in values.items() if key not in cls.model_fields})
        )


SECTIONS: dict[str, type[Section]] = {
    section.verb: section for section in (Prune, Quantize, Train, Search, Extract, Merge, Eval, Export)
}
"""Verb → its section, in the order of the paper's way."""
