"""The plug-in host: which plug-ins it loads, and what it does with broken ones."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
from helpers_plugins import module, offers

from sqft_plugins.errors import SQFTError
from sqft_plugins.plugins import hookimpl
from sqft_plugins.plugins.manager import GROUP, build_manager


def test_none_loads_the_core_alone(monkeypatch):
    monkeypatch.setenv("SQFT_PLUGINS", "none")
    host = build_manager()
    assert [name for name, _ in host.manager.list_name_plugin()] == ["sqft_plugins"]
    assert {"wanda", "sparsegpt", "magnitude"} <= set(host.collect("sqft_pruners"))
    assert not host.broken


def test_a_list_loads_only_those(monkeypatch):
    points = [module(monkeypatch, f"plug_{name}", sqft_pruners=offers(name)) for name in "ab"]
    monkeypatch.setenv("SQFT_PLUGINS", "plug_b, plug_c")
    host = build_manager(points)
    assert "b" in host.collect("sqft_pruners")
    assert "a" not in host.collect("sqft_pruners")
    assert host.broken == {
        "plug_c": "SQFT_PLUGINS names it, but it is not installed: did you mean 'plug_b'? known: plug_a, plug_b"
    }


def test_the_surfaces_come_in_through_the_entry_points(monkeypatch):
    monkeypatch.delenv("SQFT_PLUGINS", raising=False)
    host = build_manager()
    loaded = {name for name, _ in host.manager.list_name_plugin()} | set(host.broken)
    assert {"peft_ext", "vllm_ext", "gguf_ext"} <= loaded


def test_broken_plugins_are_reported_and_the_rest_is_loaded(monkeypatch):
    @hookimpl
    def sqft_pruner():  # not a hook: the s is missing
        return []

    @hookimpl
    def sqft_quantizers(model):  # the hook has no such argument
        return []

    monkeypatch.delenv("SQFT_PLUGINS", raising=False)
    host = build_manager(
        [
            EntryPoint(name="absent", value="no_such_module_anywhere", group=GROUP),
            EntryPoint(name="half", value="json:no_such_attribute", group=GROUP),
            module(monkeypatch, "plug_typo", sqft_pruner=sqft_pruner),
            module(monkeypatch, "plug_argument", sqft_quantizers=sqft_quantizers),
            module(monkeypatch, "plug_well", sqft_pruners=offers("well")),
        ]
    )
    assert set(host.broken) == {"absent", "half", "plug_typo", "plug_argument"}
    assert "no_such_module_anywhere" in host.broken["absent"]
    assert "sqft_pruner" in host.broken["plug_typo"]
    assert {"well", "wanda"} <= set(host.collect("sqft_pruners"))
    assert "round-to-nearest" in host.collect("sqft_quantizers")


def test_two_of_one_name_are_an_error(monkeypatch):
    host = build_manager([module(monkeypatch, "plug_wanda", sqft_pruners=offers("wanda"))])
    with pytest.raises(SQFTError, match="two plug-ins offer 'wanda' through sqft_pruners"):
        host.collect("sqft_pruners")


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(SQFTError, match=r"--method 'wamda' is unknown: did you mean 'wanda'\? known: .*magnitude"):
        build_manager([]).get("sqft_pruners", "wamda", "--method")
