"""What is said of a name that moved."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from sqft_plugins.canary.compare import Broken, compare, lists
from sqft_plugins.plugins import hookimpl
from sqft_plugins.plugins.manager import build_manager
from sqft_plugins.plugins.protocols import Probe, Touch

ENGINE = "class Engine:\n    def load(self, path, again=False):\n        self.slots = 'kept'\n"


def moved(written, *touches, **more):
    (result,) = compare([written.upstream(*touches, **more)])
    return [(one.name.partition(".")[2], one.how, one.loss) for one in result.moved]


@pytest.fixture
def touch(written):
    written.write(engine=ENGINE, ours="")
    return lambda name, **more: Touch(f"{written.theirs}.{name}", "what breaks", **more)


@pytest.mark.parametrize(
    ("name", "more"), [
        ("engine.Engine.slots", {}), ("engine.Engine.load", {"parameters": "self, path, again"}),
        ("engine.Engine.load", {"parameters": "self, path, ..."}), ("engine.Engine.load", {"says": ("kept",)}),
        ("engine.Engine.load", {"parameters": "self, path, again, newer="}),
    ],
)  # fmt: skip
def test_a_name_in_its_place_is_not_said(written, touch, name, more):
    assert moved(written, touch(name, **more)) == []


@pytest.mark.parametrize(
    ("name", "more", "how"), [
        ("engine.Engine.spots", {}, "gone"),
        ("engine.Motor.load", {}, "gone: there is no THEIRS.engine.Motor"),
        ("engine.Engine.load", {"parameters": "self, path"}, "parameters self, path → self, path, again"),
        ("engine.Engine.load", {"parameters": "self, again, path"}, "parameters self, again, path → self, path, again"),
        ("engine.Engine.load", {"parameters": "self, path, again, newer"},
         "parameters self, path, again, newer → self, path, again"),
        ("engine.Engine.load", {"says": ("kept", "lost")}, "its source does not say lost"),
        ("engine.Engine.slots", {"parameters": "self"}, "its parameters self cannot be seen any more"),
        ("workers.gpu.Worker", {}, "gone: there is no THEIRS.workers"),
    ],
)  # fmt: skip
def test_what_moved_is_said_with_what_breaks(written, touch, name, more, how):
    assert moved(written, touch(name, **more)) == [(name, how.replace("THEIRS", written.theirs), "what breaks")]


def test_a_replaced_method_with_other_parameters_is_said(written):
    ours = 'from THEIRS.engine import Engine\n@replaces(Engine, "no loading")\ndef load(self, path): ...\n'
    written.write(engine=ENGINE, ours=ours)
    assert moved(written) == [("engine.Engine.load", "parameters self, path → self, path, again", "no loading")]


def test_an_import_that_is_gone_is_said(written):
    written.write(engine=ENGINE, ours="from THEIRS.engine import Motor\n")
    assert moved(written) == [("engine.Motor", "gone", f"{written.ours} cannot be imported")]


def test_what_was_moved_after_a_look_is_seen_by_the_next(written, touch):
    assert moved(written, touch("engine.Engine.slots")) == []
    written.write(engine="class Engine: pass")
    assert moved(written, touch("engine.Engine.slots")) == [("engine.Engine.slots", "gone", "what breaks")]


@pytest.mark.parametrize(
    ("body", "expected"), [
        ("return None", []), ("return 'it is otherwise'", ["it is otherwise"]),
        ("raise KeyError('x')", ["KeyError: 'x'"]),
    ],
)  # fmt: skip
def test_a_probe_says_why_it_does_not_hold(written, body, expected):
    written.write(engine=ENGINE, ours=f"def tried():\n    {body}\n")
    probe = Probe("it holds", "what breaks", f"{written.ours}:tried", (written.theirs,))
    assert [how for _, how, _ in moved(written, probes=(probe,))] == expected
    (without,) = compare([written.upstream(probes=(probe,))], probe=False)
    assert without.moved == ()


def test_what_our_code_lives_with_is_known_and_no_fault(written):
    written.write(engine=ENGINE, ours="def tried():\n    return 'it is otherwise'\n")
    probe = Probe("it holds", "what breaks", f"{written.ours}:tried", (written.theirs,), copes="we go round it")
    (result,) = compare([written.upstream(probes=(probe,))])
    assert result.moved == ()
    assert result.summary == "all 0 in their place, 1 otherwise, and known"
    assert str(result.known[0]) == f"it holds: it is otherwise. Known: we go round it ({written.ours}:tried)"


def test_a_package_that_is_not_there_is_skipped(written):
    written.write(ours="from THEIRS.engine import Engine\n")
    (result,) = compare([written.upstream(Touch(f"{written.theirs}.engine", ""))])
    assert (result.version, result.names, result.moved) == (None, 0, ())


@pytest.mark.parametrize(("seen", "is_new"), [("", False), (">=1", True), ("<1", False)])
def test_a_version_that_nobody_has_seen_is_new(written, touch, seen, is_new):
    (result,) = compare([written.upstream(seen=seen)])
    assert (result.version, result.is_new) == ("0", is_new)


def test_parameters_of_a_method_whose_base_cannot_be_read_any_more_are_said(written, touch):
    written.write(engine="from nowhere_at_all import Base\nclass Engine(Base): pass")
    found = moved(written, touch("engine.Engine.load", parameters="self, path"))
    assert [how for _, how, _ in found] == ["its parameters self, path cannot be seen any more"]


def test_a_compiled_base_shows_no_parameters_and_that_is_no_fault(written, touch):
    written.write(engine="from THEIRS._C import Base\nclass Engine(Base): pass")
    (written.folder / written.theirs / f"_C{EXTENSION_SUFFIXES[0]}").write_bytes(b"")
    assert moved(written, touch("engine.Engine.load", parameters="self, path")) == []


def test_a_source_that_cannot_be_parsed_is_said_once(written, touch):
    written.write(engine="class Engine:\n    def load(:\n", other="name = 1")
    touches = [touch("engine.Engine.load", parameters="self"), touch("engine.Engine"), touch("other.name")]
    ((name, how, loss),) = moved(written, *touches)
    assert (name, loss) == ("engine", "what breaks")
    assert how.startswith("cannot be parsed: ")
    assert how.endswith(" in line 2")


def test_a_list_with_a_wrong_version_is_said_and_the_others_are_compared(written, touch):
    name = f"{written.theirs}.engine.Engine"
    bad = written.upstream(Touch(name, ""), seen="newest")
    broken, whole = compare([bad, written.upstream(Touch(name, ""))])
    assert (broken.surface, whole.moved) == (written.ours, ())
    assert "InvalidSpecifier" in broken.moved[0].how
    assert "1 of 1 moved" in broken.summary


def test_a_plug_in_whose_list_fails_has_a_row_and_the_others_are_compared(written, touch, monkeypatch):
    whole = written.upstream(touch("engine.Engine"))

    class Raises:
        @hookimpl
        def sqft_upstream(self):
            raise KeyError("no list")

    class Lists:
        @hookimpl
        def sqft_upstream(self):
            return [whole]

    host = build_manager([])
    host.manager.register(Raises(), name="raises")
    host.manager.register(Lists(), name="lists")
    monkeypatch.setattr(sys.modules[compare.__module__], "get_manager", lambda: host)

    found = lists()
    assert whole in found
    assert Broken("raises", "KeyError: 'no list'") in found
    results = {one.surface: one for one in compare(one for one in found if one is whole or isinstance(one, Broken))}
    assert results[written.ours].moved == ()
    assert str(results["raises"].moved[0]).startswith("sqft_upstream: fails: KeyError: 'no list'. Without it: ")
