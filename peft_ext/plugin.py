"""What peft_ext offers to sqft, through the hooks.

`sqft` loads this module at every start, without the package around it: that imports PEFT, which takes seconds. So
nothing here may import PEFT or another module of the package, except inside the objects that are made late.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from sqft_plugins.plugins import hookimpl, late
from sqft_plugins.plugins.loading import without_package
from sqft_plugins.plugins.packages import package_check
from sqft_plugins.plugins.protocols import Check


@hookimpl
def sqft_tuners() -> list[Any]:
    if find_spec("peft") is None:
        return []
    return [late("sqft", "peft_ext.tuner:SQFTTuner"), late("lora", "peft_ext.tuner:LoraTuner")]


@hookimpl
def sqft_checks() -> list[Check]:
    return [package_check("peft", "pip install 'sqft-plugins[peft]'")]


@hookimpl
def sqft_upstream() -> list[Any]:
    return [without_package("peft_ext.upstream").UPSTREAM]
