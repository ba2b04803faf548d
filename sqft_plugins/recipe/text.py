"""YAML as recipes are written: 1.2's plain values, no key twice, mistakes by line; comments stay when it is written."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.resolver import VersionedResolver

from sqft_plugins.errors import SQFTError, first_line

PLAIN = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
}
"""Tag → (what it looks like, its first characters), as in YAML 1.2's core schema. ruamel.yaml's 1.2 knows more: `1_000`
is a number there and `2001-01-01` a date."""
OLD = VersionedResolver(version=(1, 1))
"""What other readers may take a plain value for: `2:4` is the number 124 in YAML 1.1, and `no` is false."""


class Core(VersionedResolver):
    """Plain values are those of `PLAIN`."""

    versioned_resolver: dict[str, list[Any]] = {  # noqa: RUF012 (a property in the base)
        first: [
            (f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"))
            for tag, (pattern, firsts) in PLAIN.items()
            if first in firsts
        ]
        for first in ["~", "", *"-+.0123456789tTfFnN"]
    }


class Quoting(RoundTripRepresenter):
    """Quotes a text that YAML 1.1 takes for something else; lists of plain values stand on one line."""

    def represent_str(self, text: str) -> ScalarNode:
        old = OLD.resolve(ScalarNode, text, (True, False))
        style = None if old == OLD.DEFAULT_SCALAR_TAG else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Quoting.add_representer(str, Quoting.represent_str)


def read_yaml(file: Path) -> tuple[Any, Any]:
    """(the value, the same with its comments, for `write_yaml`). Raises SQFTError for a file that is missing or no
    YAML, naming the line."""
    try:
        text = file.read_text(encoding="utf-8")
        return parse_yaml(text), _yaml("rt").load(text)
    except FileNotFoundError as error:
        raise SQFTError(f"recipe {file} is no file: check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SQFTError(f"recipe {file} cannot be read ({error}): give a YAML file") from error
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or first_line(error)
        problem = problem.partition(" with value ")[0]  # of a key that stands twice, both values
        line = f" line {mark.line + 1}" if mark is not None else ""
        raise SQFTError(f"recipe {file}{line} is no YAML ({problem}): correct it") from error


def parse_yaml(text: str) -> Any:
    """The value. Raises YAMLError."""
    return _yaml("safe").load(text)


def write_yaml(values: Mapping[str, Any], commented: Sequence[CommentedMap] = ()) -> str:
    """The keys in their order. commented: mappings as `read_yaml` gives them, whose comments are kept."""
    shown = CommentedMap()
    for part in reversed(commented):  # an earlier part, with the sections that only the later ones have
        for name, value in shown.items():
            part.setdefault(name, value)
        shown = part
    for name in [name for name in shown if name not in values]:
        del shown[name]

    for name, value in values.items():
        inner = shown.get(name)
        if isinstance(value, Mapping) and isinstance(inner, CommentedMap):
            for key in [key for key in inner if key not in value]:
                del inner[key]
            for key, one in value.items():
                _put(inner, key, one)
        elif not (value == {} and name in shown):  # a step without options
            _put(shown, name, value)

    file = io.StringIO()
    _yaml("rt").dump(shown, file)
    return file.getvalue()


def _put(mapping: CommentedMap, key: str, value: Any) -> None:
    if key in mapping and mapping[key] == value:
        return  # written as it was: 3e-4 stays 3e-4
    mapping[key] = value
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        mapping[key] = CommentedSeq(value)
        mapping[key].fa.set_flow_style()


def _yaml(kind: str) -> YAML:
    yaml = YAML(typ=kind, pure=True)
    yaml.Resolver, yaml.width = Core, 120
    if kind == "rt":
        yaml.Representer = Quoting
    return yaml
