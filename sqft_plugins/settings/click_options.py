"""Command line options made of settings.

    @click.command()
    @options(adapter=AdapterSettings, training=TrainSettings)
    def command(adapter: AdapterSettings, training: TrainSettings) -> None: ...

has an option for each field of both, named as the field (`--batch-size`), with the field's type, bounds, choices,
default and description. The function gets the settings, in which only what was written on the command line is set.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from sqft_plugins.settings import Offered, Settings, Written
from sqft_plugins.settings.checked import ADAPTER_FOLDER, DTYPE, RANK, THERE, ParamType, offered

F = TypeVar("F", bound=Callable[..., Any])
MARKED: dict[Any, Any] = {
    "adapter": ADAPTER_FOLDER,
    "file": THERE,
    "name or file": click.Path(),
    "place": click.Path(),
    "dtype": DTYPE,
    "rank": RANK,
}
"""Mark of a field → its click type."""


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

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: Any, **values: Any) -> Any:
            context = click.get_current_context()
            made = {argument: kind.make(_given(kind, values, context)) for argument, kind in kinds.items()}
            return function(*args, **values, **made)

        for name, field in reversed(fields):
            called = option_of(name, field)(called)
        return called

    return decorate


def written_fields(kind: type[Settings]) -> list[tuple[str, FieldInfo]]:
    """The fields that have an option: the settings' own before those of the settings that they extend."""
    names = dict.fromkeys(name for level in kind.__mro__ for name in inspect.get_annotations(level))
    fields = [(name, kind.model_fields[name]) for name in names if name in kind.model_fields]
    return [(name, field) for name, field in fields if not _written(field).absent]


def option_of(name: str, field: FieldInfo) -> Callable[[F], F]:
    """The click option of one field."""
    written, default = _written(field), field.get_default(call_default_factory=True)
    option = written.name or f"--{name.replace('_', '-')}"
    text: dict[str, Any] = {"help": written.help or field.description, "metavar": written.metavar}
    members = _members(field)

    if bool in members:
        plain = default is False or bool(written.name)
        switch = option if plain else f"{option}/--no-{option[2:]}"
        return click.option(switch, name, is_flag=True, default=not plain, **text)

    repeated = not written.commas and any(get_origin(member) in (list, dict) for member in members)
    if not (field.is_required() or written.commas or default in (None, [], {})):
        text |= {"default": default, "show_default": True}
    return click.option(option, name, type=_type(field), multiple=repeated, required=field.is_required(), **text)


def _given(kind: type[Settings], values: dict[str, Any], context: click.Context) -> dict[str, Any]:
    """The values of the fields that stand on the command line; all of its fields are taken out of `values`."""
    found: dict[str, Any] = {}
    for name, field in written_fields(kind):
        value, members = values.pop(name), _members(field)
        if context.get_parameter_source(name) == ParameterSource.DEFAULT:
            continue
        if bool in members and _written(field).name:
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
    for mark in field.metadata:
        if isinstance(mark, click.ParamType):
            return mark
        if isinstance(mark, Offered):
            return offered(mark.hook)
        if isinstance(mark, str):
            return MARKED[mark]
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
