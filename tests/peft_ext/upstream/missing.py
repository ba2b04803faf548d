"""Packages that PEFT's tests import and this environment lacks: importing them works, using them skips the test."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import sys
import types
from contextlib import contextmanager

import pytest


class _Missing(types.ModuleType):
    __path__ = ()
    __version__ = "0"

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _missing_class(self.__name__, name)


def _missing_class(package: str, name: str) -> type:
    def skip(*args, **kwargs):
        pytest.skip(f"{package} is not installed")

    return type(name, (), {"__init__": skip, "from_pretrained": staticmethod(skip), "kstest": staticmethod(skip)})


class _Parameterized(_Missing):
    """`parameterized.expand`, in pytest's words."""

    class parameterized:  # noqa: N801
        @staticmethod
        def expand(cases, **kwargs):
            def decorate(function):
                def test(self, case):
                    return function(self, *(case if isinstance(case, tuple | list) else (case,)))

                test.__name__, test.__module__ = function.__name__, function.__module__
                test.parameterized = function  # for aim.own_source
                test.pytestmark = list(getattr(function, "pytestmark", []))
                return pytest.mark.parametrize("case", list(cases))(test)

            return decorate


class _Attr(_Missing):
    dataclass = staticmethod(dataclasses.dataclass)


@contextmanager
def missing_packages():
    """While open, packages that upstream's tests import and that are not installed can be imported."""
    wanted = {
        "attr": _Attr,
        "diffusers": _Missing,
        "scipy": _Missing,
        "datasets": _Missing,
        "parameterized": _Parameterized,
    }
    made = {}
    for name, kind in wanted.items():
        if importlib.util.find_spec(name) is None:
            made[name] = kind(name)
            made[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
