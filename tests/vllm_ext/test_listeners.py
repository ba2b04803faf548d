"""What a listener hears, without vLLM: a module that is loaded later, an adapter of ours, one of others."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from helpers_adapters import write_adapter

from vllm_ext import listeners, met

MODULE = """
class Engine:
    def add(self, request, more=1):
        return "vLLM's own", request, more
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """A class of a module that is loaded after somebody listens for it; nothing of ours was met before. Among Python's
    finders is one of the old kind, without `find_spec`, as six had."""
    (tmp_path / "an_engine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(met, "_has_met", False)
    monkeypatch.setattr(met, "_waiting", [])
    monkeypatch.setattr(listeners, "_listening", [])
    monkeypatch.setattr(listeners, "PLACES", {"an_engine": {("Engine", "add"): lambda request, *_: [request]}})
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_module=lambda *_: None), *sys.meta_path])
    listeners.listen()
    met.when_met(listeners.stop)
    assert "an_engine" not in sys.modules
    import an_engine

    yield an_engine.Engine
    listeners.stop()
    sys.modules.pop("an_engine")


def request(path):
    return SimpleNamespace(lora_path=str(path))


def test_adapters_of_others_reach_vllm_as_they_come(engine, tmp_path):
    write_adapter(tmp_path / "lora", choices=None, peft_type="LORA")
    for path in (tmp_path / "lora", tmp_path / "nowhere"):
        asked = request(path)
        assert engine().add(asked, more=2) == ("vLLM's own", asked, 2)
    assert engine().add(None) == ("vLLM's own", None, 1)
    assert not met.has_met()


@pytest.mark.parametrize("path", ["math?sub=r8", "math", "damaged"])
def test_an_adapter_of_ours_is_met_and_the_call_is_made_again(engine, tmp_path, path):
    write_adapter(tmp_path / "math")
    (write_adapter(tmp_path / "damaged") / "adapter_model.safetensors").unlink()  # we say so; vLLM's engine would end

    def patch():
        own = engine.add
        engine.add = lambda self, request, more=1: ("ours", own(self, request, more))

    met.when_met(patch)
    asked = request(tmp_path / path)
    assert engine().add(asked, more=3) == ("ours", ("vLLM's own", asked, 3))
    assert met.has_met()
    assert not listeners._listening


def test_what_is_left_after_ours_was_met_runs_at_once(engine):
    met.meet()
    done = []
    met.when_met(lambda: done.append(1))
    met.meet()
    assert done == [1]


def test_what_fails_is_tried_again(engine):
    tries = []

    def fails_once():
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("no disk")

    met.when_met(fails_once)
    with pytest.raises(RuntimeError, match="no disk"):
        met.meet()
    met.meet()
    met.meet()
    assert len(tries) == 2
