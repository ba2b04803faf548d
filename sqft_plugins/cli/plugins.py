"""sqft plugins: what is loaded, and what could not be."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import click

from sqft_plugins.cli.common import table
from sqft_plugins.cli.verb import Found, verb


def listing() -> list[dict[str, Any]]:
    """Every plug-in, the core first: name, package, version, the hooks it implements, and why it is broken if it is."""
    from sqft_plugins.plugins import get_manager
    from sqft_plugins.plugins.manager import GROUP

    host = get_manager()
    packages = {point.name: point.dist for point in importlib.metadata.entry_points(group=GROUP)}
    packages["sqft_plugins"] = next((d for d in packages.values() if d and d.name == "sqft-plugins"), None)
    found = []
    for name, plugin in host.manager.list_name_plugin():
        if plugin is not None:
            hooks = sorted(caller.name for caller in host.manager.get_hookcallers(plugin) or [])
            found.append({"name": name, **_package(packages.get(name)), "hooks": hooks, "broken": None})
    for name, why in sorted(host.broken.items()):
        found.append({"name": name, **_package(packages.get(name)), "hooks": [], "broken": why})
    return found


def _package(package: importlib.metadata.Distribution | None) -> dict[str, str | None]:
    return {"package": package.name if package else None, "version": package.version if package else None}


@verb(
    "sqft plugins",
    "sqft plugins --json",
    "SQFT_PLUGINS=none sqft plugins            # the core alone; a list loads only those: SQFT_PLUGINS=peft_ext",
)
def command() -> Found:
    """List the plug-ins: name, version, hooks. The core's own methods are listed, too."""
    found = listing()
    return Found({"plugins": found}, lambda: _show(found))


def _show(found: list[dict[str, Any]]) -> None:
    rows = [
        (
            p["name"],
            p["version"] or "-",
            p["package"] or "-",
            f"broken: {p['broken']}" if p["broken"] else ", ".join(p["hooks"]),
        )
        for p in found
    ]
    table(("plug-in", "version", "package", "hooks"), rows)
    if any(p["broken"] for p in found):
        click.echo("A broken plug-in is left out, the rest works. `sqft doctor` says how to repair it.")
