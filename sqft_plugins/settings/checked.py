"""Types of click arguments that refuse a wrong value before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sqft_plugins.errors import SQFTError

PLANNED = "planned"
"""The `obj` of a click context whose paths are made later, by the earlier steps of a recipe: they are not checked."""


class Checked(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """Text that `check(value, argument)` accepts, or raises SQFTError for. argument: such as "--data"."""

    name = "text"

    def __init__(self, check: Callable[[str, str], object]):
        self.check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if ctx is not None and ctx.obj != PLANNED:  # without a context: a value of a recipe
            self.check(value, param.opts[0] if param else "")
        return value


class CheckedPath(Checked):
    """The same of a path."""


def offered(hook: str) -> Checked:
    """The name of something that plug-ins offer through a hook."""

    def check(name: str, argument: str) -> None:
        from sqft_plugins.plugins import get_manager

        get_manager().get(hook, name, argument)

    return Checked(check)


def _there(path: str, argument: str) -> None:
    if not Path(path).exists():
        raise SQFTError(f"{argument} {path} is not there: check the path")


def _file(path: str, argument: str) -> None:
    if not Path(path).is_file():
        raise SQFTError(f"{argument} {path} is not a file: check the path")


def _model_folder(path: str, argument: str) -> None:
    from sqft_plugins.checkpoint.hub import check_folder

    check_folder(path)


def _model_name(name: str, argument: str) -> None:
    from sqft_plugins.checkpoint.hub import check_folder, check_name

    check_name(name)
    if Path(name).is_dir():
        check_folder(name)


def _adapter_folder(path: str, argument: str) -> None:
    from sqft_plugins.adapter import AdapterFolder

    AdapterFolder(path)


def _pattern(text: str, argument: str) -> None:
    from sqft_plugins.pattern import asked_patterns

    asked_patterns(text)


def _dtype(name: str, argument: str) -> None:
    from sqft_plugins.hardware import check_dtype

    check_dtype(name)


THERE = CheckedPath(_there)
"""A path of any kind."""
FILE = CheckedPath(_file)
MODEL_FOLDER = CheckedPath(_model_folder)
MODEL_NAME = CheckedPath(_model_name)
"""A model folder, or what can be a name on the hub."""
ADAPTER_FOLDER = CheckedPath(_adapter_folder)
N_OF_M = Checked(_pattern)
DTYPE = Checked(_dtype)
"""fast, auto, or the name of a float type."""
