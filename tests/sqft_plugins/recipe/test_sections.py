"""A section has the options of its verb."""

from __future__ import annotations

import importlib

import click
import pytest

from sqft_plugins.recipe.sections import SECTIONS
from sqft_plugins.settings.checked import PLANNED

NOT_IN_RECIPES = {
    "out", "overwrite", "as_json", "study", "worker", "server", "served", "cache", "samples", "adapter",
    "base",
}  # fmt: skip
"""Options that the recipe sets itself, or that make no sense in one. --adapter of eval: an adapter is a target. --base,
and --tokenizer of merge: of a model that is a .gguf file, which a recipe refuses."""


@pytest.mark.parametrize("verb", [verb for verb in SECTIONS if verb != "export"])
def test_a_section_has_the_options_of_its_verb_and_their_defaults(verb):
    command = importlib.import_module(f"sqft_plugins.cli.{verb}").command
    options = {p.name: p for p in command.params if isinstance(p, click.Option) and p.name not in NOT_IN_RECIPES}
    if verb == "merge":
        del options["tokenizer"]
    fields = SECTIONS[verb].model_fields
    arguments = {p.name for p in command.params if isinstance(p, click.Argument)}
    assert options.keys() | arguments == fields.keys() | ({"model"} & arguments)
    given = [f"--{name}={0.5 if name == 'sparsity' else 'x'}" for name, option in options.items() if option.required]
    out = ["--out", "x"] if any(p.name == "out" for p in command.params) else []
    bare = command.make_context(verb, [*given, *out, *("x" for _ in arguments)], obj=PLANNED)
    for name, option in options.items():
        if option.required or name == "rank":  # a search above decides the rank, else the verb's default
            continue
        ours, theirs = fields[name].get_default(call_default_factory=True), bare.params[name]
        if name in ("symmetric", "sparse", "importance"):  # --asymmetric, --dense, --no-importance
            theirs = not theirs
        if isinstance(ours, list | dict):
            theirs = type(ours)(theirs) if theirs else ours if name == "target_modules" else type(ours)()
        assert ours == theirs or (verb, name, theirs) == ("eval", "dtype", None), name
