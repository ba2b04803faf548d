"""The JSON schema of a recipe. What an option means comes from the help of its verb, so that it stands in one place."""

from __future__ import annotations

import importlib
import re
from typing import Any

import click

from sqft_plugins.plugins import get_manager
from sqft_plugins.recipe import export
from sqft_plugins.recipe.read import GEMMA
from sqft_plugins.recipe.sections import SECTIONS, Export, Section

REFERENCES = {
    "model": "What it works on: a step above, base (the recipe's model), or a folder. Default: the last one above that "
    "fits.",
    "adapter": "The adapter: a step above, or a folder. Default: the last one above.",
    "grid": "The INT4 model of a quantization-aware adapter over a float one: a step above, or a folder.",
    "rank": "heuristic (the median), max, min, a number, a step of search, a JSON file, or module → rank. Default: "
    "that of the last search of this adapter above, else heuristic.",
}
PLAIN = {
    "learning_rate": "The highest, after the warm-up.",
    "weight_decay": "Of AdamW.",
    "dropout": "Of the adapter's inputs; not with quantization_aware.",
    "share_rank": "layer: one rank a block; module: one a layer.",
    "batch_size": "Questions at a time.",
    "seed": "Of everything that is drawn.",
}
"""What the help of the verbs leaves to the name."""
TYPES = {"integer": "integer", "float": "number", "boolean": "boolean"}


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
    help_of, marks = _help(section.verb), section.marks({})
    properties = {name: _property(name, value, name in marks, help_of) for name, value in made["properties"].items()}
    if section is Export:
        properties["format"]["enum"] = sorted(get_manager().collect("sqft_exporters"))
        for format_name in properties["format"]["enum"]:
            for name, parameter in export.parameters(format_name).items():
                properties.setdefault(name, _option(parameter))
    command = _command(section.verb)
    return {
        "description": (command.help or "").partition("\n\n")[0].strip() + f" (sqft {section.verb})",
        "anyOf": [
            {"type": "object", "properties": properties, "additionalProperties": False},
            {"type": "null", "description": "With its defaults."},
            {"const": False, "description": "Left out."},
        ],
    }


def _property(name: str, value: dict[str, Any], marked: bool, help_of: dict[str, str]) -> dict[str, Any]:
    """Its own description, else that of a reference, else the help of the option of that name."""
    text = value.get("description") or (REFERENCES.get(name) if marked else None)
    text = text or help_of.get(name) or help_of.get(f"{name}s")  # a repeatable option is called so in the command
    text = _keys(text or PLAIN.get(name, ""))
    kept = {key: part for key, part in value.items() if key not in ("title", "description")}
    return {**kept, **({"description": text} if text else {})}


def _help(verb: str) -> dict[str, str]:
    """Parameter → its help, of a verb's command."""
    return {
        parameter.name or "": " ".join((parameter.help or "").split())
        for parameter in _command(verb).params
        if isinstance(parameter, click.Option)
    }


def _option(parameter: click.Parameter) -> dict[str, Any]:
    """An option of an exporter."""
    kind: dict[str, Any] = {"type": TYPES.get(parameter.type.name, "string")}
    value = {"type": "array", "items": kind} if parameter.multiple or parameter.nargs == -1 else kind
    text = " ".join((getattr(parameter, "help", None) or "").split())
    return {**value, **({"description": _keys(text)} if text else {})}


def _keys(text: str) -> str:
    """A help text as it reads in a recipe: --float-type is float_type."""
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda option: option[1].replace("-", "_"), text)


def _command(verb: str) -> click.Command:
    return importlib.import_module(f"sqft_plugins.cli.{verb}").command
