"""What our sources are found to touch."""

import pytest

from sqft_plugins.canary.code import derived, undeclared
from sqft_plugins.canary.sources import forget
from sqft_plugins.plugins.protocols import Touch

THEIRS = """
class Engine:
    def __init__(self): self.slots = 1
    def step(self, batch): pass
    def _load(self, path): pass
    def show(self): pass
"""
OURS = """
from THEIRS.engine import Engine
from THEIRS.engine import missing as also
try:
    from THEIRS.engine import optional
except ImportError:
    optional = None
LOSS = "nothing runs"

@replaces(Engine, LOSS)
def step(self, batch):
    return self.slots + self.spots

@replaces(Engine, "no path", "_load")
def load(self, path): ...

class Own(Engine):
    def show(self, more=None):
        return self.step(self._load), self.mine
    def grow(self): self.mine = super().slots

def use(engine: Engine | None, other):
    return engine.slots, other._secret, getattr(other, "_by_name"), other._replace
"""


@pytest.fixture
def upstream(written):
    written.write(engine=THEIRS, ours=OURS)
    forget()
    return written.upstream()


def touched(upstream):
    return {touch.name.partition(".")[2]: touch for touch in derived(upstream)}


def test_what_the_sources_show_is_derived(upstream):
    found = touched(upstream)
    assert found.keys() == {
        "engine.Engine", "engine.missing", "engine.Engine.step", "engine.Engine._load", "engine.Engine.slots",
        "engine.Engine.spots", "engine.Engine.show",
    }  # fmt: skip


def test_a_replaced_method_has_its_parameters_its_loss_and_its_line(upstream):
    step, load = touched(upstream)["engine.Engine.step"], touched(upstream)["engine.Engine._load"]
    assert (step.parameters, step.loss, step.used) == ("self, batch", "nothing runs", f"{upstream.code}/__init__.py:11")
    assert (load.parameters, load.loss) == ("self, path", "no path")


def test_an_overriding_method_may_take_more(upstream):
    assert touched(upstream)["engine.Engine.show"].parameters == "self, more="


def test_the_loss_of_an_import_is_that_of_its_module(written, upstream):
    listed = written.upstream(Touch(f"{written.theirs}.engine", "no engine"))
    assert touched(listed)["engine.missing"].loss == "no engine"


def test_private_names_and_deep_modules_have_to_be_declared(written, upstream):
    place = f"{upstream.code}/__init__.py"
    assert undeclared(upstream) == [
        f"{place}:2: {written.theirs}.engine", f"{place}:3: {written.theirs}.engine", f"{place}:23: _secret",
        f"{place}:23: _by_name",
    ]  # fmt: skip

    names = ("engine", "engine.Engine._load", "engine.Engine._secret", "engine.Engine._by_name")
    assert undeclared(written.upstream(*(Touch(f"{written.theirs}.{name}", "") for name in names))) == []


def test_an_overridden_hook_has_to_be_declared(written):
    written.write(
        engine="class Engine:\n    def _hook(self): pass",
        ours="from THEIRS.engine import Engine\nclass Own(Engine):\n    def _hook(self): pass\n    def _own(self): ...",
    )
    forget()
    found = undeclared(written.upstream(public=(f"{written.theirs}.engine",)))
    assert found == [f"{written.ours}/__init__.py:3: _hook"]
