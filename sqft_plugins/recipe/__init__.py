"""Recipes: the whole way from prune to export as one file that can be killed and goes on (docs/how-to/recipes.md).

text.py reads YAML, read.py makes a recipe of it. sections.py has the keys of each step, wire.py says which step works
on what: above.py finds it, artefact.py is what is known of it. inputs.py looks for mistakes, make.py calls the verbs,
run.py keeps the record, dry.py only plans, schema.py is for editors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqft_plugins.lazy import lazy

if TYPE_CHECKING:
    from sqft_plugins.recipe.dry import plan_recipe
    from sqft_plugins.recipe.read import read_recipe
    from sqft_plugins.recipe.run import run_recipe

__all__ = ["plan_recipe", "read_recipe", "run_recipe"]
__getattr__ = lazy(__name__, {"plan_recipe": "dry", "read_recipe": "read", "run_recipe": "run"})
