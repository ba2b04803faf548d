"""A hook of mkdocs: fills reference pages from the command line and the settings, so that they are up to date."""

from __future__ import annotations

import importlib
import inspect
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

PACKAGES = ("sqft_plugins", "peft_ext", "gguf_ext")
MARK = "<!-- generated: {} -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the marks of a page by what the code says today."""
    parts = {"commands": commands, "settings": settings, **{name: partial(exports, name) for name in PACKAGES}}
    for name, generate in parts.items():
        if MARK.format(name) in markdown:
            markdown = markdown.replace(MARK.format(name), "\n\n".join(generate()))
    return markdown


def exports(package: str) -> Iterator[str]:
    """A directive of mkdocstrings for each name that the package exports: its docstring, where it is defined."""
    for _, home in public_names([package]):
        yield f"::: {home}"


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


def on_post_build(config: Any, **_: Any) -> None:
    """Stops the build at a public name that no page describes."""
    from mkdocs.exceptions import BuildError

    described = _inventory(Path(config["site_dir"]) / "objects.inv")
    missing = [name for name, home in public_names() if not {name, home} & described]
    if missing:
        raise BuildError(f"no page describes {', '.join(missing)}: add it to docs/reference/python")


def public_names(packages: Sequence[str] = PACKAGES) -> Iterator[tuple[str, str]]:
    """What the packages export: the public name, and the name of its definition."""
    for package in packages:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if not name.startswith("__"):
                defined = inspect.isclass(value) or inspect.isfunction(value)
                home = f"{value.__module__}.{value.__qualname__}" if defined else f"{package}.{name}"
                yield f"{package}.{name}", home


def _inventory(file: Path) -> set[str]:
    """The names in a Sphinx inventory: four lines of header, then compressed lines that begin with a name."""
    body = file.read_bytes().split(b"\n", 4)[4]
    return {line.split(" ", 1)[0] for line in zlib.decompress(body).decode().splitlines()}
