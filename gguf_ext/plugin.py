"""What gguf_ext offers to sqft, through the hooks. Everything is imported when it is used."""

from __future__ import annotations

from typing import Any

from sqft_plugins.plugins import hookimpl


class GGUFExporter:
    """`sqft export gguf`."""

    name = "gguf"

    @property
    def command(self) -> Any:
        from gguf_ext.cli import export_command

        return export_command


@hookimpl
def sqft_exporters():
    return [GGUFExporter()]


@hookimpl
def sqft_engines():
    from gguf_ext.runtime import LlamaCpp

    return [LlamaCpp()]


@hookimpl
def sqft_checks():
    from gguf_ext.checks import checks

    return checks()


@hookimpl
def sqft_commands(group):
    from gguf_ext.cli import verify_command

    group.add_command(verify_command)
