"""Types of click arguments that refuse a wrong value before anything heavy is imported."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ByteSize, TypeAdapter, ValidationError

from sqft_plugins.checkpoint.hub import check_folder, check_model, check_name
from sqft_plugins.configurations import read_configuration
from sqft_plugins.errors import SQFTError
from sqft_plugins.hardware import check_dtype

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # no generic type before click 8.2

SIZE = TypeAdapter(ByteSize)
WHOLE_SIZE = re.compile(r"\s*[\d_.]+\s*([kmgtpe]i?)?b?\s*", re.IGNORECASE)
"""What pydantic reads to its end: it takes "1,000" for 1, and "2GB of it" for 2GB."""
PLANNED = "planned"
"""The `obj` of a click context whose paths are made later, by the earlier steps of a recipe: they are not checked."""


class Checked(ParamType):
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


class Rank(ParamType):
    """A number, a name, or a JSON file with module name (or pattern) → rank, which is read."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or not value.endswith(".json"):
            return value
        try:
            return read_configuration(value)
        except SQFTError as error:
            self.fail(str(error), param, ctx)


class Bytes(ParamType):
    """A number of bytes."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        size = parse_bytes(value)
        return self.fail(f"{value} is no number of bytes: write such as 512MiB or 2GB") if size is None else size


def parse_bytes(text: str | int) -> int | None:
    """500000000, 2G or 512MiB → bytes; None for what is no number of bytes."""
    if WHOLE_SIZE.fullmatch(str(text)):
        with contextlib.suppress(ValidationError):
            return int(SIZE.validate_python(text))
    return None


def offered(hook: str) -> Checked:
    """The name of something that plug-ins offer through a hook."""

    def check(name: str, argument: str) -> None:
        from sqft_plugins.plugins import get_manager

        get_manager().get(hook, name, argument)

    return Checked(check)


def _there(path: str, argument: str) -> None:
    if not Path(path).exists():
        raise SQFTError(f"{argument} {path} is not there: check the path")


def _model_name(name: str, argument: str) -> None:
    check_name(name)
    if Path(name).is_dir():
        check_folder(name)


def _adapter_folder(path: str, argument: str) -> None:
    from sqft_plugins.adapter import AdapterFolder  # late: it reads safetensors, help pages do not

    AdapterFolder(path)


THERE = CheckedPath(_there)
"""A path of any kind."""
MODEL = CheckedPath(lambda path, _: check_model(path))
"""A model folder, or a model that a plug-in reads, such as a GGUF file."""
MODEL_FOLDER = CheckedPath(lambda path, _: check_folder(path))
MODEL_NAME = CheckedPath(_model_name)
"""A model folder, or what can be a name on the hub."""
ADAPTER_FOLDER = CheckedPath(_adapter_folder)
DTYPE = Checked(lambda name, _: check_dtype(name))
"""fast, auto, or the name of a float type."""
BYTES = Bytes()
RANK = Rank()
