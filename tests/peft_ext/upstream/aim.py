"""PEFT's own tests, aimed at SQFTConfig: its test modules imported with `LoraConfig` replaced.

Their sources come with PEFT's sdist; `make install` puts them into .cache/peft-tests/<version>/, nothing of them
is in this repository. A module is imported as `peft_upstream.<name>` while `peft.LoraConfig` is the class under test:
every list of configurations and every test body in it then uses that class.

SQFT_AIM chooses the class: "sparse" (the default: SQFTConfig over half-zero bases), "elastic" (the same with
rank_choices), "dense" (sparse=False), "lora" (stock LoraConfig under the same harness: the baseline).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import missing
import peft
import pytest
import stand_ins
from torch import nn

from peft_ext import SQFTConfig

SOURCES = Path(__file__).parents[3] / ".cache" / "peft-tests" / peft.__version__
PACKAGE = "peft_upstream"
COLLECTED = pytest.StashKey[list[str]]()
"""The names of all upstream tests that were collected, `<file>::<class>::<test>[<parameters>]`."""
AIM = os.environ.get("SQFT_AIM", "sparse")


class Elastic(SQFTConfig):
    """SQFTConfig that, where nothing else is asked for, searches the ranks r and r / 2."""

    def __init__(self, *args, **kwargs) -> None:
        rank = kwargs.get("r", 8)
        if isinstance(rank, int) and rank > 1 and not kwargs.get("rank_pattern"):
            kwargs.setdefault("rank_choices", [rank, rank // 2])
        super().__init__(*args, **kwargs)


@dataclass
class Dense(SQFTConfig):
    """SQFTConfig whose adapters are dense."""

    sparse: bool = False


AIMS = {"sparse": SQFTConfig, "elastic": Elastic, "dense": Dense, "lora": peft.LoraConfig}
CONFIG = AIMS[AIM]


def reaim(name: str, into: dict) -> None:
    """Puts the tests and fixtures of upstream's module `name` into the namespace `into`. Skips it where PEFT's tests
    were not fetched."""
    if not SOURCES.is_dir():
        pytest.skip(f"PEFT's tests are not in {SOURCES}: `make install` fetches them", allow_module_level=True)
    module = load(name)
    into.update({key: value for key, value in vars(module).items() if not key.startswith("__")})


def load(name: str) -> types.ModuleType:
    full = f"{PACKAGE}.{name}"
    if full in sys.modules:
        return sys.modules[full]
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(SOURCES)]
        sys.modules[PACKAGE] = package
    with mock.patch.object(peft, "LoraConfig", CONFIG), missing.missing_packages():
        utilities = importlib.import_module(f"{PACKAGE}.testing_utils")
        utilities.hub_online_once = stand_ins.hub_online_once
        module = importlib.import_module(full)
    for value in vars(module).values():
        if isinstance(value, list) and any(CONFIG in config_classes(case) for case in value):
            value[:] = [case for case in value if CONFIG in config_classes(case)]  # read by parametrize marks, later
        if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == full:
            make_sparse(value)
    return module


def make_sparse(model_class: type[nn.Module]) -> None:
    """Lets every new model of a class begin with half of the weights of its linears zero."""
    init = model_class.__init__

    def __init__(self, *args, **kwargs) -> None:  # noqa: N807
        init(self, *args, **kwargs)
        stand_ins.zero_half_of_linears(self)

    model_class.__init__ = __init__


def is_aimed(item: pytest.Function) -> bool:
    """Whether a collected test is about the class under test: one of its parameters is (or holds) that class, or it has
    no configuration class among its parameters and its source (or that of its class's helpers) names LoraConfig."""
    parameters = getattr(item, "callspec", None)
    if parameters is not None:
        classes = [c for value in parameters.params.values() for c in config_classes(value)]
        if classes:
            return CONFIG in classes
    return re.search(r"\bLoraConfig\b", own_source(item)) is not None


def config_classes(value: object) -> list[type]:
    if isinstance(value, type) and issubclass(value, peft.PeftConfig):
        return [value]
    if isinstance(value, peft.PeftConfig):
        return [type(value)]
    if isinstance(value, list | tuple):
        return [c for one in value for c in config_classes(one)]
    return []


def own_source(item: pytest.Function) -> str:
    source = inspect.getsource(getattr(item.function, "parameterized", item.function))
    if item.cls is not None:
        helpers = [inspect.unwrap(value) for key, value in vars(item.cls).items() if not key.startswith("test")]
        # unwrapped: pytest wraps fixtures, from 8.4 on in what is no function
        source += "".join(inspect.getsource(helper) for helper in helpers if inspect.isfunction(helper))
    return source
