"""The walk through a forward pass: its statements, and the functions that they call."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from torch import nn

from peft_ext.bypass.expressions import WEIGHTS, Expressions
from peft_ext.bypass.values import UNKNOWN, Scope, Values, members, scope_of, truth_of, union

NOT_FOLLOWED = ("torch.nn.modules.module", "transformers.modeling_utils", "transformers.generation")
UNUSED = {("DisentangledSelfAttention", "in_proj")}
"""(class, child) whose read no model reaches: DeBERTa's is for `query_states`, which its encoder gives where z_steps is
above 1, and z_steps is 0 in its source."""


def weights_read_by(parent: nn.Module) -> tuple[list[nn.Module], bool]:
    """The modules whose `weight` the forward pass of `parent` reads, and whether all of it could be seen: False where
    Python has no source of something that names a weight (defined on standard input, say)."""
    walk = _Walk()
    forward = getattr(type(parent), "forward", None)
    if isinstance(forward, types.FunctionType):
        walk.call(forward, [[parent]], {}, entry=True)
    unused = [getattr(parent, child, None) for name, child in UNUSED if name == type(parent).__name__]
    return [module for module in walk.read if not any(module is one for one in unused)], walk.complete


class _Walk(Expressions):
    """One walk. complete: whether all of it could be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.complete = True
        self._seen: set[tuple[Any, ...]] = set()

    def call(
        self, function: types.FunctionType, given: list[Values], named: dict[str, Values], entry: bool = False
    ) -> None:
        """Walks the body of a Python function. entry: its further arguments are the caller's, and unknown."""
        function = inspect.unwrap(function)
        if not isinstance(function, types.FunctionType) or function.__module__.startswith(NOT_FOLLOWED):
            return

        # once with the same modules
        modules = [
            id(value) for values in (*given, *named.values()) for value in values if isinstance(value, nn.Module)
        ]
        key = (function.__code__, *modules)
        if key in self._seen or len(self._seen) > 500:
            return
        self._seen.add(key)

        tree = _tree_of(function)
        if tree is None:
            self.complete &= not _names(function.__code__) & set(WEIGHTS)
            return

        outer = self.function, self.owner
        self.function, self.owner = function, given[0][0] if given and given[0] else None
        self._block(tree.body, scope_of(function, tree.args, given, named, entry))
        self.function, self.owner = outer

    def _block(self, body: Iterable[ast.stmt], scope: Scope) -> bool:
        """Whether the block surely ends here: what follows it is not reached."""
        return any(self._statement(statement, scope) for statement in body)

    def _statement(self, node: ast.stmt, scope: Scope) -> bool:
        """Walks one statement; whether the block surely ends with it."""
        if isinstance(node, ast.If):
            return self._if(node, scope)
        if isinstance(node, ast.For):
            self.assign(node.target, members(self.value(node.iter, scope)), scope)
            self._loop([*node.body, *node.orelse], scope)
        elif isinstance(node, ast.While):
            self._loop([ast.Expr(node.test), *node.body, *node.orelse], scope)
        elif isinstance(node, ast.With):
            for item in node.items:
                self.value(item.context_expr, scope)
            return self._block(node.body, scope)
        elif isinstance(node, ast.Try):
            self._loop([*node.body, *(s for h in node.handlers for s in h.body), *node.orelse], scope)
            return self._block(node.finalbody, scope)
        elif isinstance(node, ast.Assign):
            values = self.value(node.value, scope)
            for target in node.targets:
                self.assign(target, values, scope, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self.assign(node.target, self.value(node.value, scope), scope)
        elif isinstance(node, ast.FunctionDef):  # called somewhere here, as by gradient checkpointing
            inner = {**scope, **{arg.arg: [UNKNOWN] for arg in ast.walk(node.args) if isinstance(arg, ast.arg)}}
            self._block(node.body, inner)
        elif isinstance(node, ast.ClassDef | ast.Import | ast.ImportFrom):
            pass
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.value(child, scope)
            if isinstance(node, ast.AugAssign):
                self.assign(node.target, [UNKNOWN], scope)

        return isinstance(node, ast.Return | ast.Raise | ast.Continue | ast.Break)

    def _if(self, node: ast.If, scope: Scope) -> bool:
        truth = truth_of(self.value(node.test, scope))
        ends, scopes = [], []
        for case, body in ((True, node.body), (False, node.orelse)):
            if case in truth:
                own = dict(scope)
                ends.append(self._block(body, own))
                if not ends[-1]:
                    scopes.append(own)
        if scopes:
            names = {name for own in scopes for name in own}
            scope.update({name: union(own.get(name, [UNKNOWN]) for own in scopes) for name in names})
        return all(ends)

    def _loop(self, body: list[ast.stmt], scope: Scope) -> None:
        """A body that may run never, once or often."""
        own = dict(scope)
        for node in body:
            for part in ast.walk(node):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store) and part.id in own:
                    own[part.id] = union([own[part.id], [UNKNOWN]])
        for statement in body:  # a `continue` ends one round only
            self._statement(statement, own)
        for name in own:
            scope[name] = union([scope.get(name, [UNKNOWN]), own[name]])


@lru_cache(maxsize=1024)
def _tree_of(function: types.FunctionType) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef)), None)


def _names(code: types.CodeType) -> set[str]:
    """The names that a function and those defined in it use."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
