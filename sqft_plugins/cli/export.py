"""sqft export: the formats that plug-ins offer, one subcommand each."""

from __future__ import annotations

from typing import Any

import click

from sqft_plugins.cli.common import examples
from sqft_plugins.errors import nearest


class Formats(click.Group):
    """Its subcommands are the commands of the `sqft_exporters` hook."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_exporters())

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        known = _exporters()
        if name not in known:
            raise click.UsageError(f"export format {name!r} is unknown: {nearest(name, known)}{_absent()}")
        return known[name].command


def _exporters() -> dict[str, Any]:
    from sqft_plugins.plugins import get_manager

    return get_manager().collect("sqft_exporters")


def _absent() -> str:
    """Formats live in plug-ins: where one is broken or none is loaded, that is the likely reason."""
    from sqft_plugins.plugins import get_manager

    broken = get_manager().broken
    if broken:
        return f"; broken plug-ins: {', '.join(broken)}, see `sqft doctor`"
    if _exporters():
        return ""
    return "; no plug-in with formats is loaded: pip install 'sqft-plugins[gguf]', unset SQFT_PLUGINS"


@click.group(
    cls=Formats,
    invoke_without_command=True,
    epilog=examples(
        "sqft export gguf models/merged-int4 --out model.gguf",
        "sqft export --help                        # the formats there are",
        "sqft export gguf --help                   # the options of one format",
        "sqft plugins                              # which plug-ins offer formats",
    ),
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Write a model in another runtime's format."""
    if ctx.invoked_subcommand is None:
        raise click.UsageError(f"export needs a format: known: {', '.join(_exporters()) or 'none'}{_absent()}")
