"""Command line options made of settings.

    @click.command()
    @options(adapter=AdapterSettings, training=TrainSettings)
    def command(adapter: AdapterSettings, training: TrainSettings) -> None: ...

has an option for each field of both, named as the field (`--batch-size`), with the field's type, bounds, choices,
default and description. The function gets the settings, in which only what was written on the command line is set.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from sqft_plugins.settings import Offered, Settings, Written
from sqft_plugins.settings.checked import DTYPE, THERE, offered

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # no generic type before click 8.2

F = TypeVar("F", bound=Callable[..., Any])
PATHS = ("name or file", "place")


class Commas(ParamType):
    """A list in one text: 32,24,16."""

    name = "list"

    def __init__(self, item: type, example: str):
        self.item, self.example = item, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        try:
            found = [self.item(part.strip()) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers: write it as {self.example}", param, ctx)
        if "" in found:
            self.fail(f"{value!r} has an empty name: write it as {self.example}", param, ctx)
        return found


class Assignment(ParamType):
    """PATTERN=VALUE → both."""

    name = "assignment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        pattern, equals, given = value.rpartition("=")
        if not equals or not pattern or not given:
            self.fail(f"{value!r} is no PATTERN=VALUE: write such as down_proj=0.4", param, ctx)
        return pattern, given


def options(**kinds: type[Settings]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds the options of some settings to a command. kinds: argument of the function → settings."""

    fields = [pair for kind in kinds.values() for pair in written_fields(kind)]
    names = {name for name, _ in fields}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: Any, **values: Any) -> Any:
            context = click.get_current_context()
            made = {argument: kind.make(_given(kind, values, context)) for argument, kind in kinds.items()}
            others = {name: value for name, value in values.items() if name not in names}
            return function(*args, **others, **made)

        for name, field in reversed(fields):
            called = option_of(name, field)(called)
        return called

    return decorate


def written_fields(kind: type[Settings]) -> list[tuple[str, FieldInfo]]:
    """The fields that have an option: the settings' own before those of the settings that they extend."""
    own = [name for name in kind.model_fields if name in kind.__annotations__]
    names = [*own, *(name for name in kind.model_fields if name not in own)]
    fields = [(name, kind.model_fields[name]) for name in names]
    return [(name, field) for name, field in fields if not _written(field).absent]


def option_of(name: str, field: FieldInfo) -> Callable[[F], F]:
    """The click option of one field."""
    written, default = _written(field), field.get_default(call_default_factory=True)
    option = written.option or f"--{name.replace('_', '-')}"
    text: dict[str, Any] = {"help": written.help or field.description, "metavar": written.metavar}
    members = _members(field)

    if bool in members and written.option:  # given, the field is False
        return click.option(option, name, is_flag=True, default=False, **text)
    if bool in members and default is True:
        return click.option(f"{option}/--no-{option[2:]}", name, default=True, **text)
    if bool in members:
        return click.option(option, name, is_flag=True, **text)

    repeated = not written.commas and any(get_origin(member) in (list, dict) for member in members)
    if field.is_required():
        return click.option(option, name, type=_type(field), multiple=repeated, required=True, **text)
    if repeated or written.commas or default is None:
        return click.option(option, name, type=_type(field), multiple=repeated, **text)
    return click.option(option, name, type=_type(field), default=default, show_default=True, **text)


def _given(kind: type[Settings], values: Mapping[str, Any], context: click.Context) -> dict[str, Any]:
    """The values of the fields that stand on the command line."""
    found: dict[str, Any] = {}
    for name, field in written_fields(kind):
        if context.get_parameter_source(name) == ParameterSource.DEFAULT:
            continue
        value, members = values[name], _members(field)
        if bool in members and _written(field).option:
            value = not value
        elif isinstance(value, tuple):
            value = dict(value) if any(get_origin(member) is dict for member in members) else list(value)
        found[name] = value
    return found


def _type(field: FieldInfo) -> Any:
    """The click type of a field that is no flag."""
    members, written = _members(field), _written(field)
    inner = next((get_args(member) for member in members if get_origin(member) is list), ())
    if written.commas:
        example = field.examples[0] if field.examples else []
        return Commas(inner[0], ",".join(map(str, example)))
    if any(get_origin(member) is dict for member in members):
        return Assignment()
    if "file" in field.metadata:
        return THERE
    if "dtype" in field.metadata:
        return DTYPE
    if any(mark in PATHS for mark in field.metadata):
        return click.Path()
    if hook := next((mark.hook for mark in field.metadata if isinstance(mark, Offered)), None):
        return offered(hook)
    if get_origin(members[0]) is Literal:
        return click.Choice(get_args(members[0]))
    if str in members or str in inner:
        return click.STRING
    return _number(int if int in members else float, field)


def _number(kind: type, field: FieldInfo) -> ParamType:
    bounds: dict[str, Any] = {}
    for bound in field.metadata:
        match bound:
            case annotated_types.Ge(ge=low):
                bounds["min"] = low
            case annotated_types.Gt(gt=low):
                bounds |= {"min": low, "min_open": True}
            case annotated_types.Le(le=high):
                bounds["max"] = high
            case annotated_types.Lt(lt=high):
                bounds |= {"max": high, "max_open": True}
    if not bounds:
        return click.INT if kind is int else click.FLOAT
    return click.IntRange(**bounds) if kind is int else click.FloatRange(**bounds)


def _members(field: FieldInfo) -> list[Any]:
    """The types that a field may have, without None."""
    annotation: Any = field.annotation
    union = get_origin(annotation) in (Union, types.UnionType)
    return [member for member in (get_args(annotation) if union else [annotation]) if member is not types.NoneType]


def _written(field: FieldInfo) -> Written:
    return next((mark for mark in field.metadata if isinstance(mark, Written)), Written())
