"""Names in sources that are never imported."""

import pytest

from sqft_plugins.canary.sources import find, forget, parameters

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
