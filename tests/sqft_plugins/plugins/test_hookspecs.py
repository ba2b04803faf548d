"""Every hook, and every object that a hook returns, is described in docs/how-to/write-a-plugin.md."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from sqft_plugins.plugins import hookspecs, protocols

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "write-a-plugin.md"
HOOKS = [name for name, function in vars(hookspecs).items() if hasattr(function, "sqft_spec")]
PROTOCOLS = [name for name, kind in vars(protocols).items() if getattr(kind, "__module__", "") == protocols.__name__]


def test_the_hooks_are_found():
    assert {"sqft_pruners", "sqft_commands"} <= set(HOOKS)
    assert {"Pruner", "Check", "Item"} <= set(PROTOCOLS)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook):
    assert inspect.getdoc(getattr(hookspecs, hook)), f"{hook} has no docstring in hookspecs.py"
    assert f"`{hook}" in PAGE.read_text(), f"{hook} is missing in {PAGE}"


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "Searcher"])
def test_every_protocol_is_documented(protocol):
    assert f"**`{protocol}`**" in PAGE.read_text(), f"{protocol} is missing in {PAGE}"
