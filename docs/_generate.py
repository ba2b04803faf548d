"""A hook of mkdocs: fills reference pages from the command line and the settings, so that they are up to date."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

MARK = "<!-- generated: {} -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the marks of a page by what the code says today."""
    for name, generate in (("commands", commands), ("settings", settings)):
        if MARK.format(name) in markdown:
            markdown = markdown.replace(MARK.format(name), "\n\n".join(generate()))
    return markdown


def commands() -> Iterator[str]:
    """The help page of every verb, those of plug-ins among them."""
    from sqft_plugins.cli import cli

    yield from _help(cli, click.Context(cli, info_name="sqft", max_content_width=120, terminal_width=120), "sqft", 2)


def _help(command: click.Command, context: click.Context, name: str, level: int) -> Iterator[str]:
    if level > 2 or name == "sqft":
        yield f"{'#' * min(level, 4)} {name}\n\n```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            inner = command.get_command(context, verb)
            if inner is not None:
                child = click.Context(inner, info_name=verb, parent=context, max_content_width=120, terminal_width=120)
                yield from _help(inner, child, f"{name} {verb}", level + 1)


def settings() -> Iterator[str]:
    """A table for each section of the schema of recipes."""
    from sqft_plugins.recipe.schema import recipe_schema

    for title, section in sorted(recipe_schema()["$defs"].items()):
        if "properties" not in section:
            continue
        rows = [f"## {title}", section.get("description", ""), "| key | type | default | |\n|---|---|---|---|"]
        for key, field in section["properties"].items():
            default = f"`{field['default']!r}`" if "default" in field else "needed"
            text = field.get("description", "").replace("|", "\\|").replace("\n", " ")
            rows[-1] += f"\n| `{key}` | {_type(field)} | {default} | {text} |"
        yield "\n\n".join(row for row in rows if row)


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"])
    if "$ref" in field:
        return field["$ref"].rsplit("/", 1)[-1]
    return str(field.get("type", "any"))
