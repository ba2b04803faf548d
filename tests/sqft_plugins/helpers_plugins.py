"""Plug-ins that live in this process only."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

from sqft_plugins.plugins import hookimpl
from sqft_plugins.plugins.manager import GROUP


def module(monkeypatch, name: str, **functions) -> EntryPoint:
    """A plug-in that lives only in sys.modules."""
    made = ModuleType(name)
    for key, function in functions.items():
        setattr(made, key, function)
    monkeypatch.setitem(sys.modules, name, made)
    return EntryPoint(name=name, value=name, group=GROUP)


class Named:
    statistic = "none"

    def __init__(self, name: str):
        self.name = name


def offers(name: str):
    @hookimpl
    def sqft_pruners():
        return [Named(name)]

    return sqft_pruners
