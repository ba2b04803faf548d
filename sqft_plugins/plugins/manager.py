"""The plug-in manager: built-in methods, then the entry-point group `sqft`."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pluggy

from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.plugins import hookspecs
from sqft_plugins.plugins.loading import load
from sqft_plugins.variables import PLUGINS

GROUP = "sqft"
BUILT_IN = "sqft_plugins.builtin"


@dataclass
class Host:
    """The loaded plug-ins. broken: plug-in name → why it could not be loaded; a broken plug-in never stops the rest."""

    manager: pluggy.PluginManager
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def hook(self) -> pluggy.HookRelay:
        return self.manager.hook

    def collect(self, hook_name: str) -> dict[str, object]:
        """{name: object} of a hook whose plug-ins return objects with a `name`. Two of one name are an error."""
        found: dict[str, object] = {}
        for objects in getattr(self.hook, hook_name)():
            for item in objects:
                if item.name in found:
                    raise SQFTError(
                        f"two plug-ins offer {item.name!r} through {hook_name}: uninstall one, see `sqft plugins`"
                    )
                found[item.name] = item
        return found

    def get(self, hook_name: str, name: str, argument: str) -> Any:
        """One object by name. Raises SQFTError that names the nearest one."""
        found = self.collect(hook_name)
        if name not in found:
            raise SQFTError(f"{argument} {name!r} is unknown: {nearest(name, found)}")
        return found[name]


def build_manager(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Host:
    """A new host with the core's methods and the given entry points (None: those installed).

    `SQFT_PLUGINS=none` in the environment loads no entry point, `SQFT_PLUGINS=a,b` only those named; a name that is not
    installed counts as a broken plug-in.
    """
    host = Host(pluggy.PluginManager("sqft"))
    host.manager.add_hookspecs(hookspecs)
    host.manager.register(importlib.import_module(BUILT_IN), name="sqft_plugins")
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=GROUP)

    # which of them
    switch = os.environ.get(PLUGINS)
    points = {point.name: point for point in sorted(entry_points, key=lambda point: point.name)}
    wanted = set(points) if switch is None else {name.strip() for name in switch.split(",")} - {"none", ""}
    for name in sorted(wanted - set(points)):
        host.broken[name] = f"{PLUGINS} names it, but it is not installed: {nearest(name, points)}"

    for name, point in points.items():
        if name in wanted and not host.manager.has_plugin(name):
            try:
                host.manager.register(load(point), name=name)
                host.manager.check_pending()
            except Exception as error:  # a stranger's plug-in may fail in any way: report it, keep the rest
                if host.manager.has_plugin(name):
                    host.manager.unregister(name=name)
                host.broken[name] = traceback.format_exception_only(error)[-1].strip()
    return host


@lru_cache(maxsize=1)
def get_manager() -> Host:
    """The host of this process, built at the first call."""
    return build_manager()
