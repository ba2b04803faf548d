"""What peft_ext offers to sqft, through the hooks. The package around this module imports PEFT, for the registry."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from sqft_plugins.errors import SQFTError
from sqft_plugins.plugins.hookspecs import hookimpl
from sqft_plugins.plugins.protocols import Check

REMEDY = "pip install 'sqft-plugins[peft]'"


@hookimpl
def sqft_tuners():
    if find_spec("peft") is None:
        return []
    from peft_ext.tuner import LoraTuner, SQFTTuner

    return [SQFTTuner(), LoraTuner()]


@hookimpl
def sqft_checks():
    try:
        found = version("peft")
    except PackageNotFoundError:
        return [Check("peft", "missing", "not installed", REMEDY)]
    try:
        from peft_ext.registry import check_version

        check_version()
    except (SQFTError, ImportError) as error:
        return [Check("peft", "wrong", found, str(error))]
    return [Check("peft", "ok", found)]
