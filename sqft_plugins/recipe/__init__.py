"""Recipes: the whole way from prune to export as one file that can be killed and goes on (docs/how-to/recipes.md).

text.py reads YAML, read.py makes a recipe of it, wire.py says which step works on what, inputs.py looks for mistakes,
make.py calls the verbs, run.py keeps the record, dry.py only plans, schema.py tells editors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqft_plugins.recipe.dry import plan_recipe
    from sqft_plugins.recipe.read import read_recipe
    from sqft_plugins.recipe.run import run_recipe

__all__ = ["plan_recipe", "read_recipe", "run_recipe"]
HOMES = {"plan_recipe": "dry", "read_recipe": "read", "run_recipe": "run"}


def __getattr__(name: str) -> Any:  # they import all of transformers
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"sqft_plugins.recipe.{HOMES[name]}"), name)
