"""What the expressions of a forward pass may be: each is evaluated to the list of its possible values (`values.py`).

On the way, every module whose `weight` is computed with is put into `Expressions.read`.
"""

from __future__ import annotations

import ast
import itertools
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from peft_ext.bypass.values import (
    MOST,
    UNKNOWN,
    Many,
    Scope,
    Values,
    attribute_of,
    compare,
    holds_modules,
    known,
    members,
    truth_of,
    union,
)

WEIGHTS = ("weight", "in_proj_weight")
HARMLESS = frozenset(
    [
        *("dtype", "device", "shape", "size", "ndim", "dim", "numel", "layout", "element_size", "__class__"),
        *("requires_grad", "requires_grad_", "grad", "is_meta", "is_cuda", "is_floating_point", "register_hook"),
        "clamp_",
    ]
)
ASKING = ("isinstance", "type", "id", "hasattr", "len", "callable", "issubclass")
"""Calls that look at a weight without computing with it."""


class Expressions:
    """One walk's expressions; `_NODE` evaluates the syntax tree's NODE, anything else is UNKNOWN.

    read: the modules whose weight is computed with, in order.
    function, owner: the function that is walked now, and its `self`.
    """

    def __init__(self) -> None:
        self.read: list[nn.Module] = []
        self.function: types.FunctionType | None = None
        self.owner: Any = None

    def call(self, function: types.FunctionType, given: list[Values], named: dict[str, Values]) -> None:
        """Walks the body of a function that an expression calls."""
        raise NotImplementedError

    def value(self, node: ast.expr, scope: Scope) -> Values:
        """What an expression may be."""
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is not None:
            return method(node, scope)[:MOST]
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child, scope)
        return [UNKNOWN]

    def _constant(self, node: ast.Constant, scope: Scope) -> Values:
        return [node.value]

    def _joinedstr(self, node: ast.JoinedStr, scope: Scope) -> Values:
        texts = [part.value for part in node.values if isinstance(part, ast.Constant) and part.value]
        return texts[:1] or [UNKNOWN]  # true, whatever stands in the braces

    def _name(self, node: ast.Name, scope: Scope) -> Values:
        if node.id in scope:
            return scope[node.id]
        assert self.function is not None
        found = self.function.__globals__.get(node.id, UNKNOWN)
        # other variables of a module, such as is_fast_path_available, are not the same on every machine
        return [found] if isinstance(found, types.ModuleType | type | types.FunctionType) else [UNKNOWN]

    def _attribute(self, node: ast.Attribute, scope: Scope) -> Values:
        if node.attr in HARMLESS:
            self._look(node.value, scope)
            return [UNKNOWN]
        result: Values = []
        for owner in self.value(node.value, scope):
            if node.attr in WEIGHTS and isinstance(owner, nn.Module):
                if not any(owner is one for one in self.read):
                    self.read.append(owner)
                result.append(UNKNOWN)
            else:
                result.append(attribute_of(owner, node.attr))
        return union([result])

    def _look(self, node: ast.expr, scope: Scope) -> None:
        """Evaluates an expression of which only the kind is asked: a weight in it is not read."""
        if isinstance(node, ast.Attribute) and node.attr in (*WEIGHTS, "data"):
            self._look(node.value, scope)
        else:
            self.value(node, scope)

    def _subscript(self, node: ast.Subscript, scope: Scope) -> Values:
        owners, index = self.value(node.value, scope), self.value(node.slice, scope)
        if len(owners) == len(index) == 1 and index[0] is not UNKNOWN:
            try:
                return [known(owners[0][index[0]])]
            except Exception:  # no such member, or no container
                return [UNKNOWN]
        return members(owners)

    def _tuple(self, node: ast.Tuple | ast.List | ast.Set, scope: Scope) -> Values:
        return [Many(itertools.chain.from_iterable(self.value(part, scope) for part in node.elts))]

    _list = _set = _tuple

    def _starred(self, node: ast.Starred, scope: Scope) -> Values:
        return members(self.value(node.value, scope))

    def _boolop(self, node: ast.BoolOp, scope: Scope) -> Values:
        ends = isinstance(node.op, ast.Or)  # what decides the whole: a true one in `or`, a false one in `and`
        result: Values = []
        for part in node.values:
            values = self.value(part, scope)
            truth = truth_of(values)
            if truth == {ends}:
                return union([result, values])
            if ends in truth:
                result.append(UNKNOWN)
        return union([result, values])

    def _unaryop(self, node: ast.UnaryOp, scope: Scope) -> Values:
        values = self.value(node.operand, scope)
        if not isinstance(node.op, ast.Not):
            return [UNKNOWN]
        return [not truth for truth in truth_of(values)]

    def _compare(self, node: ast.Compare, scope: Scope) -> Values:
        presence = all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
        sides = [node.left, *node.comparators]
        if presence:
            for side in sides:
                self._look(side, scope)
        if len(sides) != 2:
            return [UNKNOWN] if presence else [self.value(side, scope) and UNKNOWN for side in sides][:1]
        if presence and isinstance(node.left, ast.Attribute) and node.left.attr in WEIGHTS:
            return [UNKNOWN]
        left, right = (self.value(side, scope) for side in sides)
        if len(left) * len(right) > MOST:
            return [UNKNOWN]
        return union([[compare(node.ops[0], a, b)] for a in left for b in right])

    def _ifexp(self, node: ast.IfExp, scope: Scope) -> Values:
        truth = truth_of(self.value(node.test, scope))
        branches = {True: node.body, False: node.orelse}
        return union(self.value(branches[case], scope) for case in truth)

    def _namedexpr(self, node: ast.NamedExpr, scope: Scope) -> Values:
        values = self.value(node.value, scope)
        self.assign(node.target, values, scope)
        return values

    def _lambda(self, node: ast.Lambda, scope: Scope) -> Values:
        names = [arg.arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)]
        self.value(node.body, {**scope, **{name: [UNKNOWN] for name in names}})
        return [UNKNOWN]

    def _listcomp(self, node: Any, scope: Scope) -> Values:
        own = dict(scope)
        for part in node.generators:
            self.assign(part.target, members(self.value(part.iter, own)), own)
            for test in part.ifs:
                self.value(test, own)
        made = [self.value(getattr(node, name), own) for name in ("key", "value", "elt") if hasattr(node, name)]
        return [Many(union(made))]

    _generatorexp = _setcomp = _dictcomp = _listcomp

    def _call(self, node: ast.Call, scope: Scope) -> Values:
        # built-in questions about their arguments
        if isinstance(node.func, ast.Name) and node.func.id not in scope:
            if node.func.id in ASKING:
                for part in node.args:
                    self._look(part, scope)
                return self._asked(node, scope)
            if node.func.id == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                return self._attribute(ast.Attribute(node.args[0], str(node.args[1].value), ast.Load()), scope)

        # what only hands its arguments on, and functions of Python
        given = [self.value(part, scope) for part in node.args]
        named = {str(word.arg): self.value(word.value, scope) for word in node.keywords}
        if isinstance(node.func, ast.Name):
            if node.func.id in ("enumerate", "zip"):
                return [Many([Many(union([[UNKNOWN], *map(members, given)]))])]
            if node.func.id in ("reversed", "list", "tuple", "iter", "sorted"):
                return [Many(union(map(members, given)))]
            if node.func.id == "next":
                return union(map(members, given))
            for function in self.value(node.func, scope):
                if isinstance(function, types.FunctionType) and holds_modules([*given, *named.values()]):
                    self.call(function, given, named)
            return [UNKNOWN]

        if not isinstance(node.func, ast.Attribute):
            self.value(node.func, scope)
            return [UNKNOWN]
        return self._method(node.func, given, named, scope)

    def _method(self, node: ast.Attribute, given: list[Values], named: dict[str, Values], scope: Scope) -> Values:
        """A call `OWNER.NAME(given, **named)`, with `node` for OWNER.NAME."""
        # super(): every class above may have it
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id == "super":
            for cls in type(self.owner).__mro__[1:]:
                function = cls.__dict__.get(node.attr)
                if isinstance(function, types.FunctionType):
                    self.call(function, [[self.owner], *given], named)
            return [UNKNOWN]

        if node.attr in HARMLESS:
            self._look(node.value, scope)
            return [UNKNOWN]

        # of a module its children, or a method; of a library a function that is given modules
        result: Values = []
        for owner in self.value(node.value, scope):
            if isinstance(owner, nn.Module) and node.attr in ("children", "modules", "values"):
                return [Many(owner.children())]
            if isinstance(owner, nn.Module) and node.attr in ("items", "named_children", "named_modules"):
                return [Many([Many([UNKNOWN, *owner.children()])])]
            function = getattr(type(owner), node.attr, None) if isinstance(owner, nn.Module) else None
            if isinstance(owner, types.ModuleType):
                function, owner = getattr(owner, node.attr, None), None
                if not holds_modules([*given, *named.values()]):
                    function = None
            if isinstance(function, types.FunctionType):
                self.call(function, [[owner], *given] if owner is not None else given, named)
            result.append(UNKNOWN)
        return union([result])

    def _asked(self, node: ast.Call, scope: Scope) -> Values:
        """isinstance(), hasattr() and len() of things that are known."""
        asking: dict[str, Callable[..., Any]] = {"isinstance": isinstance, "hasattr": hasattr, "len": len}
        function = asking.get(getattr(node.func, "id", ""))
        if function is None or any(isinstance(n, ast.Attribute) and n.attr in WEIGHTS for n in ast.walk(node)):
            return [UNKNOWN]
        given = [self.value(part, scope) for part in node.args]
        if any(len(values) != 1 or values[0] is UNKNOWN or isinstance(values[0], Many) for values in given):
            return [UNKNOWN]
        try:
            return [known(function(*(values[0] for values in given)))]
        except Exception:
            return [UNKNOWN]

    def assign(self, target: ast.expr, values: Values, scope: Scope, source: ast.expr | None = None) -> None:
        """`target = source`, where `values` are those of the source."""
        if isinstance(target, ast.Name):
            scope[target.id] = values
        elif isinstance(target, ast.Tuple | ast.List):
            parts = source.elts if isinstance(source, ast.Tuple) and len(source.elts) == len(target.elts) else None
            for index, one in enumerate(target.elts):
                self.assign(one, self.value(parts[index], scope) if parts else members(values), scope)
        elif isinstance(target, ast.Starred):
            self.assign(target.value, [UNKNOWN], scope)
