"""The JSON schema of a recipe, out of its sections; of an export's options out of the command of its format."""

from __future__ import annotations

import importlib
import re
from typing import Any

import click

from sqft_plugins.plugins import get_manager
from sqft_plugins.recipe import export
from sqft_plugins.recipe.read import GEMMA
from sqft_plugins.recipe.sections import SECTIONS, Export, Section

TYPES = {"integer": "integer", "float": "number", "boolean": "boolean"}
"""click's name of a type → JSON schema's."""


def recipe_schema() -> dict[str, Any]:
    """JSON schema, draft 2020-12. Nothing is required, so that parts of a recipe, too, are valid; `sqft run` asks for
    what is missing."""
    steps = {verb: _section(section) for verb, section in SECTIONS.items()}

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sqft recipe",
        "description": "Steps from prune to export, in the order written: `sqft run RECIPE.yaml`.",
        "type": "object",
        "properties": {
            "model": {
                "type": "string",
                "description": f"A folder, a name on the hub, or {GEMMA} (from its PyPI package).",
            },
            "out": {"type": "string", "description": "The run folder. Default: the recipe's name, here."},
            **{verb: {"$ref": f"#/$defs/{verb}"} for verb in steps},
        },
        "patternProperties": {f"^{verb}-[A-Za-z0-9_.-]+$": {"$ref": f"#/$defs/{verb}"} for verb in steps},
        "additionalProperties": False,
        "$defs": steps,
    }


def _section(section: type[Section]) -> dict[str, Any]:
    made = section.model_json_schema()
    properties = {name: _property(value) for name, value in made["properties"].items()}

    if section is Export:
        properties["format"]["enum"] = sorted(get_manager().collect("sqft_exporters"))
        for format_name in properties["format"]["enum"]:
            for name, parameter in export.parameters(format_name).items():
                properties.setdefault(name, _option(parameter))

    return {
        "description": (_command(section.verb).help or "").partition("\n\n")[0].strip() + f" (sqft {section.verb})",
        "anyOf": [
            {"type": "object", "properties": properties, "additionalProperties": False},
            {"type": "null", "description": "With its defaults."},
            {"const": False, "description": "Left out."},
        ],
    }


def _property(value: dict[str, Any]) -> dict[str, Any]:
    """A field as pydantic gives it, its description in a recipe's words."""
    kept = {key: part for key, part in value.items() if key != "title"}
    return kept | {"description": _keys(kept["description"])} if "description" in kept else kept


def _option(parameter: click.Parameter) -> dict[str, Any]:
    """An option or an argument of an exporter; an argument says by its metavar what it is."""
    kind: dict[str, Any] = {"type": TYPES.get(parameter.type.name, "string")}
    value = {"type": "array", "items": kind} if parameter.multiple or parameter.nargs == -1 else kind
    text = " ".join((getattr(parameter, "help", None) or parameter.metavar or "").split())
    return {**value, **({"description": _keys(text)} if text else {})}


def _keys(text: str) -> str:
    """A help text as it reads in a recipe: --float-type is float_type."""
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda option: option[1].replace("-", "_"), text)


def _command(verb: str) -> click.Command:
    command: click.Command = importlib.import_module(f"sqft_plugins.cli.{verb}").command
    return command
