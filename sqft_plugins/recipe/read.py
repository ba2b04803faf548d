"""Recipe files → one recipe: sections in their order, with absolute paths, every key and value checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from sqft_plugins.errors import SQFTError, nearest, within
from sqft_plugins.recipe.sections import SECTIONS, Section
from sqft_plugins.recipe.text import parse_yaml, read_yaml, write_yaml

GEMMA = "gemma-3-270m"
"""The model that comes from its PyPI package, as in `sqft demo`."""
BASE = "base"
"""What steps call the recipe's own model."""
TOP = ("model", "out")
_STEP = re.compile(r"([a-z]+)(-[A-Za-z0-9_.-]+)?")

Values = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """name: for messages.
    model: a folder, a name on the hub, or GEMMA.
    out: None where the recipe does not say.
    sections: step name → its section, in the order of the steps.
    folder: the run folder's name, where `out` is None.
    commented: the files as they were read, with their comments.
    """

    name: str
    model: str
    out: Path | None
    sections: Mapping[str, Section]
    folder: str
    commented: Sequence[Any] = ()

    def values(self) -> Values:
        """The recipe as it can be written again: absolute paths, and what is not a default."""
        found: Values = {"model": self.model}
        for name, section in self.sections.items():
            given = section.model_dump(exclude_unset=True)
            found[name] = {key: value for key, value in given.items() if value is not None}
        return found

    def text(self, out: Path) -> str:
        """The recipe as YAML that makes the run folder `out`, with the comments of its files."""
        return write_yaml({**self.values(), "out": str(out)}, deepcopy(self.commented))


def read_recipe(files: Sequence[str | Path], settings: Iterable[str] = ()) -> Recipe:
    """Several files are one recipe: a later one adds to what earlier ones say, or replaces it. settings: KEY=VALUE,
    such as train.steps=10, on top of all. Raises SQFTError for whatever is wrong with a key or a value."""
    if not files:
        raise SQFTError("no recipe: give a YAML file")
    read = [read_yaml(Path(file)) for file in files]
    parts = [
        (str(file), _mapping(file, value), Path(file).resolve().parent)
        for file, (value, _) in zip(files, read, strict=True)
    ]
    parts += [(f"--set {text}", _setting(text), Path.cwd()) for text in settings]

    # one part after the other
    sections: dict[str, Values] = {}
    top: Values = {}
    steps = [name for _, part, _ in parts for name in part]
    for source, part, folder in parts:
        for name, value in part.items():
            if name in TOP:
                top[name] = _top(source, name, value, folder)
            elif source.startswith("--set ") and name not in sections:
                raise SQFTError(f"{source}: the recipe has no step {name!r}: {nearest(name, sections)}")
            elif value is False:
                sections.pop(name, None)
            elif value is None or isinstance(value, Mapping):
                sections[name] = _added(source, name, sections.get(name, {}), value or {}, folder, steps)
            else:
                raise SQFTError(f"{source}: {name} is {value!r}: write its options below it, or false to leave it out")

    # the whole
    label = " ".join(str(file) for file in files)
    if "model" not in top:
        raise SQFTError(f"{label} has no model: write model: FOLDER, a name on the hub, or {GEMMA}")
    if not sections:
        raise SQFTError(f"{label} has no step: write one or more of {', '.join(SECTIONS)}")
    made = {}
    for name, values in sections.items():
        with within(f"{label}, {name}"):
            made[name] = SECTIONS[verb_of(name, label)].make(values)
    out = Path(top["out"]) if "out" in top else None
    return Recipe(label, top["model"], out, made, Path(files[0]).stem, [commented for _, commented in read])


def _added(
    source: str, name: str, so_far: Values, more: Mapping[str, Any], folder: Path, steps: Sequence[str]
) -> Values:
    """What a section says after one more part: `more`, with paths as seen from `folder`, on top of `so_far`."""
    section = SECTIONS[verb_of(name, source)]
    with within(f"{source}, {name}"):
        marks = section.marks({**so_far, **more})

    replaced = {other for key, other in section.instead.items() if key in more and other not in more}
    kept = {key: value for key, value in so_far.items() if key not in replaced}
    return kept | _absolute(more, marks, folder, steps)


def verb_of(name: str, source: str) -> str:
    """The verb that a step's name begins with. Raises SQFTError for a name that begins with no verb."""
    match = _STEP.fullmatch(name)
    if match and match[1] in SECTIONS:
        return match[1]
    raise SQFTError(f"{source}: {name!r} is no step: {nearest(name, [*SECTIONS, *TOP])}; a second one is quantize-NAME")


def _mapping(file: str | Path, value: Any) -> Values:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise SQFTError(f"recipe {file} is no mapping: write model: … and below it one section a step")
    return value


def _setting(text: str) -> Values:
    """train.steps=10 → {"train": {"steps": 10}}"""
    path, equals, value = text.partition("=")
    *outer, last = path.split(".")
    if not equals or not last or not all(outer):
        raise SQFTError(f"--set {text} is no KEY=VALUE: write such as train.steps=10")
    try:
        found: Any = parse_yaml(value)
    except YAMLError as error:
        raise SQFTError(f"--set {text}: {value!r} is no YAML value: put it in quotes") from error
    setting: Values = {last: found}
    for key in reversed(outer):
        setting = {key: setting}
    return setting


def _top(source: str, name: str, value: Any, folder: Path) -> str:
    if not isinstance(value, str) or not value:
        raise SQFTError(f"{source}: {name}={value!r} is no text: write a path")
    return str(_path(folder, value)) if name == "out" else _existing(folder, value)


def _absolute(values: Mapping[str, Any], marks: Mapping[str, str], folder: Path, steps: Sequence[str]) -> Values:
    """Paths are those seen from `folder`."""

    def place(mark: str, value: Any) -> Any:
        if isinstance(value, list):
            return [place(mark, one) for one in value]
        if not isinstance(value, str) or value in steps or value == BASE:
            return value
        if mark in ("file", "place") or (mark == "rank" and value.endswith(".json")):
            return str(_path(folder, value))
        return value if mark == "rank" else _existing(folder, value)

    return {key: place(marks[key], value) if key in marks else value for key, value in values.items()}


def _path(folder: Path, value: str) -> Path:
    return folder / Path(value).expanduser()


def _existing(folder: Path, value: str) -> str:
    """A path where there is something, else what stands there."""
    path = _path(folder, value)
    return str(path) if path.exists() else value
