"""Options, described once.

A field of a `Settings` holds all that is known of an option: its name, type, bounds, default, help text (`description`)
and examples. The command line (`click_options`), the sections of a recipe and the JSON schema derive from it:

    class PruneSettings(Settings):
        method: str = option("wanda", "Or sparsegpt, magnitude; `sqft plugins` lists more.", Offered("sqft_pruners"))

is `--method TEXT  Or sparsegpt, … [default: wanda]` in `sqft prune --help`, `method:` in a recipe, and `method` of
`PruneSettings.make({...})`. A description speaks the command line's language (`--steps`); the schema translates it.

Help pages are made of settings, so modules that define some import neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.settings.checked import ParamType

Mark = Literal["model", "adapter", "rank", "file", "name or file", "place", "dtype"]
"""What the text of a field stands for, as in `option(None, "Held-out text.", "file")`.

file: a path to read. name or file: a path where there is one, else the name of something. place: a path to write to.
dtype: a float type. adapter: its folder. rank: a rank or a JSON file. In recipes model, adapter and rank may be steps.
"""

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Offered:
    """The text is the name of something that plug-ins offer through a hook, such as "sqft_pruners"."""

    hook: str


@dataclass(frozen=True)
class Written:
    """How the command line writes a field, where the field's name and type do not say it.

    name: another name than the field's, such as "--sparsity-of"; of a field that is True by default, the flag that
        makes it False, such as "--dense".
    metavar: what stands for the value.
    help: what that flag says of itself, or another text than the description.
    commas: a list is one text, such as 32,24,16; otherwise a list repeats its option.
    absent: there is no such option.
    """

    name: str = ""
    metavar: str | None = None
    help: str = ""
    commas: bool = False
    absent: bool = False


class Settings(BaseModel):
    """A pydantic model whose errors are one line that names each field, its value and the remedy."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any):
        """Raises SQFTError with all that is wrong; an unknown key names the nearest known one."""
        kind = type(self)
        known = kind.keys(values)
        for key in values:
            if key not in known:
                raise SQFTError(f"{kind.__name__} has no key {key!r}: {nearest(key, known)}")

        try:
            super().__init__(**values)
        except ValidationError as error:
            for found in error.errors():
                cause = found.get("ctx", {}).get("error")
                if isinstance(cause, SQFTError):  # a validator of ours has said what is wrong with which value
                    raise cause from error
            raise SQFTError("; ".join(dict.fromkeys(kind._line(found) for found in error.errors()))) from error

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Self:
        """The same of a mapping."""
        return cls(**values)

    @classmethod
    def keys(cls, values: Mapping[str, Any]) -> list[str]:
        """The keys that settings with these values may have."""
        return list(cls.model_fields)

    @classmethod
    def _line(cls, error: ErrorDetails) -> str:
        name, said = ".".join(map(str, error["loc"])) or cls.__name__, error["msg"]
        return f"{name}={error['input']!r}: {said[0].lower()}{said[1:]}"

    def part(self, kind: type[S]) -> S:
        """Those of these settings that `kind` knows, as `kind`: what was not given stays not given."""
        return kind.make({name: getattr(self, name) for name in kind.model_fields if name in self.model_fields_set})


def option(
    default: Any,
    description: str,
    *marks: Mark | Offered | ParamType,
    name: str = "",
    metavar: str | None = None,
    help: str = "",
    commas: bool = False,
    absent: bool = False,
    **more: Any,
) -> Any:
    """A field of settings.

    default: `...` where the field must be given; or a type that makes it, such as `list`.
    description: its help text.
    marks: what its text stands for; or the click type of its option.
    name, metavar, help, commas, absent: see `Written`.
    more: what pydantic's `Field` takes, such as bounds and examples.
    """
    given = {"default_factory": default} if callable(default) else {"default": default}
    field: Any = Field(**given, description=description, **more)
    field.metadata += [*marks, Written(name, metavar, help, commas, absent)]
    return field


def like(kind: type[Settings], name: str, description: str | None = None) -> Any:
    """The field `name` of other settings, with its default and bounds; under another description, if given."""
    field = copy(kind.model_fields[name])
    field.description = description or field.description
    return field
