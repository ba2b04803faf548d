"""Plug-ins and their objects by name, without what they import.

A list of names must not cost the seconds that torch, PEFT or transformers take to import. Two things keep it cheap:
`load` imports the module of an entry point without the package around it, and `late` is an object of which only the
name is known until somebody uses it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any


def load(point: EntryPoint) -> Any:
    """What an entry point names: a module, or an attribute of one.

    `package.plugin` is executed without `package/__init__.py`, which may import a library of many seconds (that of
    peft_ext registers with PEFT). The package is imported by whoever imports it, such as a hook when it is called. A
    module that does not work alone is imported in the common way.
    """
    found: Any = without_package(point.module)
    for attribute in filter(None, (point.attr or "").split(".")):
        found = getattr(found, attribute)
    return found


def without_package(name: str) -> ModuleType:
    """The module `package.name`, executed without `package/__init__.py` where that works."""
    return sys.modules.get(name) or _alone(name) or importlib.import_module(name)


def _alone(name: str) -> ModuleType | None:
    """The module `name`, executed without the packages that hold it; None where that does not work."""
    root, *inner = name.split(".")
    if not inner or root in sys.modules:
        return None
    spec = importlib.util.find_spec(root)
    for part in inner:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    if spec is None or spec.loader is None:
        return None

    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception:  # it may need its package to be there first; if not, the common import fails the same way
        del sys.modules[name]
        return None
    return module


class Late:
    """What `late` returns."""

    def __init__(self, name: str, place: str):
        self.name, self._place = name, place

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") or attribute == "_real":  # what copy and pickle ask of every object; not made yet
            raise AttributeError(attribute)
        if not hasattr(self, "_real"):
            module, _, kind = self._place.partition(":")
            self._real = getattr(importlib.import_module(module), kind)()
        return getattr(self._real, attribute)


def late(name: str, place: str) -> Any:
    """An object for a hook to return, of which only the `name` is known until it is used.

    place: "module:Class"; whatever else is asked of the object is asked of an instance of that class, which is imported
    and made (without arguments) at the first such question.
    """
    return Late(name, place)
