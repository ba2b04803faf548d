"""Names in sources that are never imported."""

import re
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from sqft_plugins.canary.sources import find, forget, load, parameters

SOURCE = """
import enum
from collections import OrderedDict as Ordered
if enum:
    def late(a, /, b, *rest, c=1, **more): pass
else:
    fallback = 1
try:
    from THEIRS.other import moved_here as known
except ImportError:
    known = None

class Base:
    slots_of = 3
    __slots__ = ("packed",)
    def __init__(self):
        self.given, self._hidden = 1, 2
        self.counted: int = 0
    @property
    def shown(self): return 1

class Child(Base, Ordered):
    def method(self, x): pass

one = Child()
again = Child
raise SystemExit("imported")
"""


@pytest.fixture
def package(written):
    written.write(core=SOURCE, other="from .core import *\nfrom .core import Base as moved_here\n")
    forget()
    return written.theirs


@pytest.mark.parametrize(
    "name", [
        "core", "core.late", "core.fallback", "core.Base.slots_of", "core.Base.packed", "core.Base.given",
        "core.Base._hidden", "core.Base.counted", "core.Child.given", "core.Child.shown", "core.Child.move_to_end",
        "core.one.method", "core.again.method", "core.known.given", "other.moved_here._hidden", "other.Child.method",
    ],
)  # fmt: skip
def test_a_name_is_found_wherever_it_is_defined(package, name):
    assert find(f"{package}.{name}") is not None


@pytest.mark.parametrize(
    "name", ["gone", "core.gone", "core.Base.gone", "core.Child.gone", "core.one.gone", "core.late2"]
)
def test_a_name_that_is_not_there_is_not_found(package, name):
    assert find(f"{package}.{name}") is None


def test_parameters_have_their_stars(package):
    assert parameters(find(f"{package}.core.late").node) == ["a", "b", "*rest", "c", "**more"]
    assert parameters(find(f"{package}.core.Base").node) is None


def test_modules_that_import_each_other_end(written):
    written.write(
        a="from THEIRS.b import name\nfrom THEIRS.b import *", b="from THEIRS.a import name\nfrom .a import *"
    )
    forget()
    assert find(f"{written.theirs}.a.name") is None


def test_a_base_that_cannot_be_read_may_have_anything(written):
    written.write(core="from nowhere_at_all import Base\nclass Child(Base): pass")
    forget()
    found = find(f"{written.theirs}.core.Child.anything")
    assert found is not None
    assert not found.is_known


LAZY = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from .core import *
NAMES = {"Made": ".core"}
"""
GETATTR = "def __getattr__(name): return object()\n"
TRANSFORMERS = "sys.modules[__name__] = _LazyModule(__name__, NAMES)\n"


@pytest.mark.parametrize("how", [GETATTR, TRANSFORMERS])
@pytest.mark.parametrize(
    ("name", "is_there"), [
        ("Made", True), ("Child.given", True), ("core.Child.given", True), ("core", True),
        ("Gone", False), ("gone.worker.Worker", False), ("coreX.Child", False), ("Made.given", False),
        ("core.gone.Child", False), ("Child.gone", False),
    ],
)  # fmt: skip
def test_a_lazy_package_has_what_is_seen_and_last_names_that_it_has_as_strings(written, how, name, is_there):
    written.write(init=LAZY + how, core=SOURCE, other="moved_here = 1")
    forget()
    assert (find(f"{written.theirs}.{name}") is not None) == is_there


def test_a_name_that_was_only_being_resolved_is_found_afterwards(written):
    written.write(
        a="from THEIRS.b import other\nclass name: pass",
        b="from THEIRS.a import name as again\nclass other(again): pass",
    )
    forget()
    assert find(f"{written.theirs}.a.other") is not None
    assert find(f"{written.theirs}.b.again") is not None

    written.write(a="from THEIRS.b import name", b="try:\n    from THEIRS.a import name\nfinally:\n    name = 1")
    forget()
    assert find(f"{written.theirs}.a.name") is not None
    assert find(f"{written.theirs}.b.name") is not None


def test_a_compiled_module_without_a_stub_may_have_anything(written):
    written.write(init="")
    suffix = EXTENSION_SUFFIXES[0]
    (written.folder / written.theirs / f"_C{suffix}").write_bytes(b"\x7fELF\x00")
    forget()
    assert load(f"{written.theirs}._C").is_compiled
    found = find(f"{written.theirs}._C.Tensor.size")
    assert not found.is_known
    assert find(f"{written.theirs}._D.Tensor.size") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [("def name(:\n", "cannot be parsed: .* in line 1"), ("name = '\x00'", "cannot be parsed: .*null bytes.*")],
)
def test_a_source_that_cannot_be_parsed_may_have_anything_and_says_why(written, text, problem):
    written.write(core=text)
    forget()
    found = find(f"{written.theirs}.core.name")
    assert not found.is_known
    assert re.fullmatch(problem, found.module.problem)
