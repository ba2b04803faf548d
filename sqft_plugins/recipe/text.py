"""YAML as recipes are written: 1.2's plain values, no key twice, mistakes by line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sqft_plugins.errors import SQFTError

PLAIN = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
}
"""Tag → (what it looks like, its first characters), as in YAML 1.2's core schema. PyYAML goes by YAML 1.1, where
`2:4` is the number 124, `no` is false and `3e-4` a text."""


class Loader(yaml.SafeLoader):
    """Raises YAMLError for a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str | int | float | None):
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} is no text", problem_mark=key.start_mark)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} stands twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Lists of plain values on one line. Quotes what YAML 1.1 or 1.2 would take for something else."""


Loader.yaml_implicit_resolvers = {}
for tag, (pattern, first) in PLAIN.items():
    for side in (Loader, Dumper):
        side.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), list(first))


def read_yaml(file: Path) -> Any:
    """Raises SQFTError for a file that is missing or no YAML, naming the line."""
    try:
        return parse_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SQFTError(f"recipe {file} is no file: check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SQFTError(f"recipe {file} cannot be read ({error}): give a YAML file") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        line = f" line {mark.line + 1}" if mark is not None else ""
        raise SQFTError(f"recipe {file}{line} is no YAML ({problem}): correct it") from error


def parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader)


def write_yaml(value: Any) -> str:
    """The keys in their order."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def _list(dumper: yaml.SafeDumper, values: list) -> yaml.Node:
    short = all(isinstance(value, str | int | float) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=short)


Dumper.add_representer(list, _list)
