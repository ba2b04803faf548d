"""sqft schema: what a recipe may say, for editors."""

from __future__ import annotations

import json

import click

from sqft_plugins.cli.common import examples


@click.command(
    epilog=examples(
        "sqft schema > recipe.schema.json",
        "sqft schema | jq '.\"$defs\" | keys'                        # the steps there are",
        "sqft schema | jq '.\"$defs\".train.anyOf[0].properties | keys'",
    )
)
def command() -> None:
    """Print the JSON schema of a recipe.

    Editors complete and check by it: save it, and begin the recipe with the line `# yaml-language-server:
    $schema=recipe.schema.json`. Formats and their options are those of the plug-ins that are installed.
    """
    from sqft_plugins.recipe.schema import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2))
