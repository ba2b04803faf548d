"""What an expression of a forward pass may be, as far as it is known: a list of values, UNKNOWN among them."""

from __future__ import annotations

import ast
import itertools
import operator
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda self: "UNKNOWN"})()
COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
PLAIN = (int, float, str, bool, type(None), bytes)
MOST = 64
"""Values that one expression is followed with; more are unknown."""


Values = list[Any]
Scope = dict[str, Values]


class Many(list[Any]):
    """What is known of the members of a list, tuple or iterator."""


def scope_of(
    function: types.FunctionType, args: ast.arguments, given: list[Values], named: dict[str, Values], entry: bool
) -> Scope:
    """The parameters of a function that is called with `given` and `named` arguments → their values.

    args: its parameters in the source. entry: whether it is the forward pass itself, of which the further arguments
    are the caller's, and unknown.
    """
    names = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    every = [*names, *(arg.arg for arg in (*args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))))]
    scope: Scope = {name: [UNKNOWN] for name in every}
    if not entry and "None" not in named:  # a ** at the call may give any of them
        defaults = dict(zip(reversed(names), reversed(function.__defaults__ or ()), strict=False))
        for name, default in {**defaults, **(function.__kwdefaults__ or {})}.items():
            scope[name] = [known(default)]
    scope.update(zip(names, given, strict=False))
    scope.update({name: values for name, values in named.items() if name in scope})
    return scope


def known(value: Any) -> Any:
    """The value, UNKNOWN for what is another one in each call."""
    return UNKNOWN if isinstance(value, Tensor | torch.device) else value


def attribute_of(owner: Any, name: str) -> Any:
    """`owner.name`, UNKNOWN where it depends on the mode or the device, or cannot be had."""
    if owner is UNKNOWN or isinstance(owner, Many) or name in ("training", "device"):
        return UNKNOWN
    try:
        return known(getattr(owner, name))
    except Exception:  # what a property raises
        return UNKNOWN


def members(values: Values) -> Values:
    """What a loop over one of these values may yield."""
    found: list[Values] = []
    for value in values:
        if isinstance(value, Many):
            found.append(value)
        elif isinstance(value, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            found.append(list(value.children()))
        elif isinstance(value, list | tuple):
            found.append(list(map(known, value)))
        else:
            found.append([UNKNOWN])
    return union(found)


def holds_modules(given: Iterable[Values]) -> bool:
    """Whether one of the arguments may be a module."""
    return any(isinstance(value, nn.Module) for values in given for value in values)


def union(parts: Iterable[Values]) -> Values:
    """All values once, UNKNOWN where there is none."""
    result: Values = []
    for value in itertools.chain.from_iterable(parts):
        if not any(
            value is one or (type(value) is type(one) and isinstance(value, PLAIN) and value == one) for one in result
        ):
            result.append(value)
    return result or [UNKNOWN]


def truth_of(values: Values) -> set[bool]:
    """What `if` may find in these values."""
    result: set[bool] = set()
    for value in values:
        if value is UNKNOWN or isinstance(value, Tensor) or (isinstance(value, Many) and not value):
            return {True, False}
        try:
            result.add(bool(value))
        except Exception:
            return {True, False}
    return result


def compare(op: ast.cmpop, a: Any, b: Any) -> Any:
    """`a op b` of plain values; `is` of any."""
    if a is UNKNOWN or b is UNKNOWN:
        return UNKNOWN
    if not isinstance(op, ast.Is | ast.IsNot) and not (isinstance(a, PLAIN) and isinstance(b, (*PLAIN, tuple, list))):
        return UNKNOWN
    try:
        return bool(COMPARE[type(op)](a, b))
    except Exception:
        return UNKNOWN
