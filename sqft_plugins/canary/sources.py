"""The sources of installed packages, parsed and never imported: what is defined under a dotted name.

Reading costs milliseconds where importing costs seconds (vLLM) or is impossible (no GPU, a requirement missing), and
it finds what an import cannot show: the attributes that a constructor gives an instance.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path

LAZY = "_LazyModule("
"""What transformers puts in the place of a package."""
_resolving: set[tuple[str, str]] = set()
_found: dict[str, Definition | None] = {}
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Definition:
    """What stands under a name. node: its class, function or assignment; None for a module, and where the source does
    not tell what it is (made when it is asked for, inherited from a class that is not Python)."""

    module: Module
    node: ast.AST | None

    @property
    def is_known(self) -> bool:
        return self.node is not None

    @cached_property
    def text(self) -> str:
        """Its source."""
        return self.module.text if self.node is None else ast.get_source_segment(self.module.text, self.node) or ""


class Module:
    """One source file, or a compiled module without a stub, whose text is empty. name: dotted. table: what is defined
    in it, in all branches of an `if` or `try`."""

    def __init__(self, name: str, file: Path):
        self.name, self.file = name, file

    @cached_property
    def text(self) -> str:
        return "" if self.is_compiled else self.file.read_text(encoding="utf-8", errors="replace")

    @cached_property
    def tree(self) -> ast.Module:
        """Empty where the source cannot be parsed."""
        return self._parsed[0]

    @property
    def problem(self) -> str:
        """Why the source cannot be parsed, empty where it can."""
        return self._parsed[1]

    @cached_property
    def _parsed(self) -> tuple[ast.Module, str]:
        try:
            return ast.parse(self.text), ""
        except (SyntaxError, ValueError, RecursionError) as error:  # ValueError: a null byte
            line = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
            return ast.Module([], []), f"cannot be parsed: {str(error).partition(' (')[0]}{line}"

    @property
    def is_compiled(self) -> bool:
        return self.file.name.endswith(tuple(EXTENSION_SUFFIXES))

    def may_make(self, name: str) -> bool:
        """Whether it makes names when they are asked for, and has this one as a string."""
        is_named = f'"{name}"' in self.text or f"'{name}'" in self.text
        return is_named and (LAZY in self.text or "__getattr__" in self.table)

    @cached_property
    def table(self) -> dict[str, list[ast.AST]]:
        return table_of(self.tree)

    @property
    def package(self) -> str:
        is_package = self.file.stem == "__init__"
        return self.name if is_package else self.name.rpartition(".")[0]

    def imported(self, node: ast.ImportFrom) -> str:
        """The module that an import statement here names, dotted in full."""
        if not node.level:
            return node.module or ""
        parents = self.package.split(".")
        base = parents[: len(parents) - node.level + 1]
        return ".".join([*base, *([node.module] if node.module else [])])


def table_of(block: ast.AST) -> dict[str, list[ast.AST]]:
    """Name → nodes that define it in the body of a module or class. `*`: the imports of everything."""
    table: dict[str, list[ast.AST]] = {}
    for node in _statements(block):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [(alias.asname or alias.name).split(".")[0] for alias in node.names]
        elif isinstance(node, ast.Assign):
            targets = [part for target in node.targets for part in ast.walk(target)]
            names = [part.id for part in targets if isinstance(part, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            names = []
        for name in names:
            table.setdefault(name, []).append(node)
    return table


def _statements(block: ast.AST) -> Iterator[ast.stmt]:
    for field in ("body", "orelse", "finalbody", "handlers"):
        for node in getattr(block, field, []):
            if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
                yield from _statements(node)
            else:
                yield node


@cache
def load(name: str) -> Module | None:
    """The module of a dotted name, None where there is none. A compiled one is read from its stub (`.pyi`), if it has
    one."""
    spec = _spec(name)
    if spec is None:
        return None
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    files = [Path(spec.origin)] if spec.origin and spec.has_location else []
    stub = name.rpartition(".")[2]
    parent = files[0].parent if files else None
    candidates = [
        *(file for file in files if file.suffix == ".py"),
        *([parent / stub / "__init__.pyi", parent / f"{stub}.pyi"] if parent else []),
        *(place / "__init__.pyi" for place in places),
        *(file for file in files if file.name.endswith(tuple(EXTENSION_SUFFIXES))),
    ]
    found = next((file for file in candidates if file.is_file()), None)
    return None if found is None else Module(name, found)


@cache
def _spec(name: str) -> ModuleSpec | None:
    parent, _, _ = name.rpartition(".")
    try:
        if not parent:
            found = (
                finder.find_spec(name, None) for finder in sys.meta_path
            )  # not what a loaded module says of itself
            return next((spec for spec in found if spec is not None), None)
        above = _spec(parent)
        places = above.submodule_search_locations if above else None
        return PathFinder.find_spec(name, list(places)) if places else None  # nothing of the parent is imported
    except (ImportError, ValueError, AttributeError):
        return None


def forget() -> None:
    """Reads everything anew: a package was installed or moved meanwhile."""
    load.cache_clear()
    _spec.cache_clear()
    members_of.cache_clear()
    _found.clear()


def find(name: str) -> Definition | None:
    """What stands under a dotted name: a module, what is in one, or an attribute of a class, also one that only its
    instances have. None where nothing does.

    What a lazy module makes of a string is believed to be there where it is the last part of the name: what is below
    it cannot be seen.
    """
    if name in _found:
        return _found[name]
    found = _walked(name)
    if not _resolving:  # within a circle of imports, None may only mean: not yet
        _found[name] = found
    return found


def _walked(name: str) -> Definition | None:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = load(".".join(parts[:count]))
        if module is not None:
            found: Definition | None = Definition(module, None)
            for position, part in enumerate(parts[count:], count):
                may_be_lazy = position == len(parts) - 1
                found = _in_module(module, part, may_be_lazy) if position == count else _attribute(found, part)
                if found is None:
                    return None
            return found
    return None


def _in_module(module: Module, name: str, may_be_lazy: bool = True) -> Definition | None:
    """may_be_lazy: believe a lazy module that it has the name, where only a string says so."""
    if (module.name, name) in _resolving:  # modules that import each other
        return None
    _resolving.add((module.name, name))
    try:
        return _looked_up(module, name, may_be_lazy)
    finally:
        _resolving.discard((module.name, name))


def _looked_up(module: Module, name: str, may_be_lazy: bool) -> Definition | None:
    if module.is_compiled:
        return Definition(module, None)
    if name in module.text or "import *" in module.text:  # others of hundreds of files are not parsed
        if module.problem:
            return Definition(module, None)
        found = _defined(module, name)
        if found is not None:
            return found

    submodule = load(f"{module.name}.{name}")
    is_there = submodule is not None or (may_be_lazy and module.may_make(name))
    return Definition(submodule or module, None) if is_there else None


def _defined(module: Module, name: str) -> Definition | None:
    for node in module.table.get(name, []):
        found = _followed(module, node, name)
        if found is not None:
            return found
    for node in module.table.get("*", []):
        assert isinstance(node, ast.ImportFrom)
        other = load(module.imported(node))
        found = _in_module(other, name, may_be_lazy=False) if other is not None else None
        if found is not None:
            return found
    return None


def _followed(module: Module, node: ast.AST, name: str) -> Definition | None:
    """A name to where it comes from: through imports, `A = B`, and `a = A()`."""
    if isinstance(node, ast.ImportFrom):
        real = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        source = module.imported(node)
        return None if f"{source}.{real}" == f"{module.name}.{name}" else find(f"{source}.{real}")
    if isinstance(node, ast.Import):
        alias = next(one for one in node.names if (one.asname or one.name).split(".")[0] == name)
        return find(alias.name if alias.asname else name)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute):
        target = evaluate(module, node.value) if ast.unparse(node.value) != name else None
        return target if target is not None and target.is_known else Definition(module, node)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):  # the one object of a class
        kind = evaluate(module, node.value.func)
        return kind if kind is not None and isinstance(kind.node, ast.ClassDef) else Definition(module, node)
    return Definition(module, node)


def evaluate(module: Module, expression: ast.expr) -> Definition | None:
    """What `a.b.C` means in a module; None where that cannot be told."""
    if isinstance(expression, ast.Subscript):  # Generic[T]
        return evaluate(module, expression.value)
    if isinstance(expression, ast.Name):
        return _in_module(module, expression.id)
    if isinstance(expression, ast.Attribute):
        owner = evaluate(module, expression.value)
        return None if owner is None else _attribute(owner, expression.attr)
    return None


def _attribute(owner: Definition | None, name: str) -> Definition | None:
    if owner is None:
        return None
    if isinstance(owner.node, ast.ClassDef):
        return member(owner, name)
    if owner.node is None and name in owner.module.table:
        return _in_module(owner.module, name)
    if owner.node is None:
        submodule = load(f"{owner.module.name}.{name}")
        return Definition(submodule, None) if submodule is not None else _in_module(owner.module, name)
    return Definition(owner.module, None)  # of an object that the source does not describe


def member(owner: Definition, name: str) -> Definition | None:
    """A method or attribute of a class, its own or inherited; where one of its bases cannot be read, that base."""
    unread = None
    for cls in ancestors(owner):
        if not isinstance(cls.node, ast.ClassDef):
            unread = cls
            continue
        nodes = members_of(cls).get(name)
        if nodes:
            return Definition(cls.module, nodes[0])
    return unread


def ancestors(owner: Definition, seen: frozenset[int] = frozenset()) -> Iterator[Definition]:
    """The class and those that it inherits from; one without a node for a base that cannot be read."""
    yield owner
    if not isinstance(owner.node, ast.ClassDef) or id(owner.node) in seen:
        return
    for expression in owner.node.bases:
        if isinstance(expression, ast.Name) and expression.id in ("object", "ABC", "Protocol", "Enum", "NamedTuple"):
            continue
        base = evaluate(owner.module, expression)
        if base is None and isinstance(expression, ast.Name) and hasattr(builtins, expression.id):
            continue
        yield from ancestors(base or Definition(owner.module, None), seen | {id(owner.node)})


@cache
def members_of(cls: Definition) -> dict[str, list[ast.AST]]:
    """Name → nodes of what a class itself defines: in its body, in `__slots__`, and on `self` or `cls` in its
    methods."""
    assert isinstance(cls.node, ast.ClassDef)
    table = table_of(cls.node)
    for method in _statements(cls.node):
        if isinstance(method, FunctionNode) and (method.args.posonlyargs or method.args.args):
            own = (method.args.posonlyargs or method.args.args)[0].arg
            for one in (part for part in ast.walk(method) if isinstance(part, ast.Attribute)):
                if isinstance(one.ctx, ast.Store) and isinstance(one.value, ast.Name) and one.value.id == own:
                    table.setdefault(one.attr, []).append(one)
    for node in table.get("__slots__", []):
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                table.setdefault(part.value, []).append(node)
    return table


def parameters(node: ast.AST | None) -> list[str] | None:
    """The names of a function's parameters in order, `*args` and `**kwargs` with their stars; None for what is no
    function."""
    if not isinstance(node, FunctionNode):
        return None
    given = node.args
    plain = [one.arg for one in (*given.posonlyargs, *given.args)]
    star = [f"*{given.vararg.arg}"] if given.vararg else []
    double = [f"**{given.kwarg.arg}"] if given.kwarg else []
    return [*plain, *star, *(one.arg for one in given.kwonlyargs), *double]
