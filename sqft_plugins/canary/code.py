"""What the sources of a package of ours touch in other projects: found, so that no list has to repeat it.

| found | as |
|---|---|
| `from vllm.lora.utils import name` | the name is there; not within `try … except ImportError` |
| `@replaces(Owner, loss)` over a function (vllm_ext/patching.py) | the method is there, with these parameters |
| a method in a class that inherits from theirs, where theirs has it too | with these parameters |
| `self.name` in such a class, `parameter.name` where the parameter's annotation is a class of theirs | it is there |
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

from sqft_plugins.canary.sources import (
    Definition,
    FunctionNode,
    Module,
    ancestors,
    evaluate,
    load,
    member,
    members_of,
    parameters,
)
from sqft_plugins.plugins.protocols import Touch, Upstream

OWN = "_sqft"
"""How what we put on objects of others is called."""
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}
"""Documented by Python."""
CORE = "sqft_plugins"
BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}


@dataclass(frozen=True)
class Source:
    """One file of ours. packages: of the other projects, the first parts of their names."""

    module: Module
    packages: frozenset[str]

    def where(self, node: ast.AST) -> str:
        depth = self.module.package.count(".") + 2
        return f"{'/'.join(self.module.file.parts[-depth:])}:{getattr(node, 'lineno', 0)}"

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.module.tree))

    @cached_property
    def imports(self) -> list[tuple[ast.AST, str]]:
        """(statement, dotted name) of what is imported from the other projects, wherever it must be there."""
        optional = {id(part) for node in self.nodes if isinstance(node, ast.Try) and _may_fail(node)
                    for statement in node.body for part in ast.walk(statement)}  # fmt: skip
        found: list[tuple[ast.AST, str]] = []
        for node in self.nodes:
            if id(node) in optional:
                continue
            if isinstance(node, ast.ImportFrom) and not node.level:
                found += [(node, f"{node.module}.{alias.name}") for alias in node.names]
            elif isinstance(node, ast.Import):
                found += [(node, alias.name) for alias in node.names]
        return [(node, name) for node, name in found if self.is_theirs(name)]

    @cached_property
    def classes(self) -> list[tuple[ast.ClassDef, Definition]]:
        """(class of ours, the class of theirs that it inherits from)."""
        found = []
        for node in self.nodes:
            if isinstance(node, ast.ClassDef):
                above = [one for one in ancestors(Definition(self.module, node)) if self.is_theirs(one.module.name)]
                found += [(node, one) for one in above[:1] if one.is_known]
        return found

    def is_theirs(self, name: str) -> bool:
        return name.partition(".")[0] in self.packages

    def dotted(self, expression: ast.expr | None) -> str | None:
        """The dotted name of a class of theirs, as it is imported here."""
        if isinstance(expression, ast.BinOp):  # X | None
            return self.dotted(expression.left) or self.dotted(expression.right)
        if not isinstance(expression, ast.Name | ast.Attribute):
            return None
        first, *rest = ast.unparse(expression).split(".")
        for node in self.module.table.get(first, []):
            if isinstance(node, ast.ImportFrom):
                real = next(alias.name for alias in node.names if (alias.asname or alias.name) == first)
                name = f"{node.module}.{real}"
                if self.is_theirs(name):
                    return ".".join([name, *rest])
        found = evaluate(self.module, expression)
        if found is None or not isinstance(found.node, ast.ClassDef) or not self.is_theirs(found.module.name):
            return None
        return f"{found.module.name}.{found.node.name}"


def _may_fail(node: ast.Try) -> bool:
    return any("ImportError" in ast.unparse(handler.type) for handler in node.handlers if handler.type)


@cache
def modules_of(package: str) -> tuple[Module, ...]:
    """The sources of an installed package; each knows the imports within its functions, too."""
    top, found = load(package), []
    if top is not None:
        folder = top.file.parent
        for file in sorted(folder.rglob("*.py")) if top.package == package else [top.file]:
            parts = [package, *file.relative_to(folder).with_suffix("").parts] if file != top.file else [package]
            module = load(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
            if module is not None:
                for node in ast.walk(module.tree):
                    if isinstance(node, ast.ImportFrom):
                        for alias in node.names:
                            module.table.setdefault(alias.asname or alias.name, []).append(node)
                found.append(module)
    return tuple(found)


def sources_of(upstream: Upstream) -> Iterator[Source]:
    packages = frozenset(upstream.seen)
    return (Source(module, packages) for module in modules_of(upstream.code))


def derived(upstream: Upstream) -> list[Touch]:
    """All touches that the sources show, each name once."""
    losses = {touch.name: touch.loss for touch in upstream.touches}
    found: dict[str, Touch] = {}
    for source in sources_of(upstream):
        for touch in (*_replaced(source), *_imported(source, losses), *_inherited(source), *_annotated(source)):
            found.setdefault(touch.name, touch)
    return list(found.values())


def _imported(source: Source, losses: dict[str, str]) -> Iterator[Touch]:
    for node, name in source.imports:
        if name.count("."):
            loss = losses.get(name.rpartition(".")[0], f"{source.module.name} cannot be imported")
            yield Touch(name, loss, used=source.where(node))


def _replaced(source: Source) -> Iterator[Touch]:
    for function, call, name in _replacements(source):
        owner = source.dotted(call.args[0])
        if owner is not None:
            yield Touch(f"{owner}.{name}", _text(source, call.args[1]), _joined(function), used=source.where(function))


def _replacements(source: Source) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.Call, str]]:
    """(function of ours, its decorator, the name of the method that it replaces)."""
    for node in source.nodes:
        if isinstance(node, FunctionNode):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "replaces":
                    given = call.args[2] if len(call.args) > 2 else None
                    yield node, call, str(given.value) if isinstance(given, ast.Constant) else node.name


def _text(source: Source, node: ast.expr) -> str:
    """A string, or that of a constant of the module."""
    if isinstance(node, ast.Name):
        values = [one.value for one in source.module.table.get(node.id, []) if isinstance(one, ast.Assign)]
        node = values[0] if values else node
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _joined(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return ", ".join(parameters(function) or [])


def _inherited(source: Source) -> Iterator[Touch]:
    for cls, theirs in source.classes:
        assert isinstance(theirs.node, ast.ClassDef)
        owner, loss = f"{theirs.module.name}.{theirs.node.name}", f"{source.module.name}.{cls.name}"
        own = {name for one in ancestors(Definition(source.module, cls)) if one.module.name.startswith(_top(source))
               if isinstance(one.node, ast.ClassDef) for name in members_of(one)}  # fmt: skip

        for node in cls.body:
            if isinstance(node, FunctionNode) and not node.name.startswith("__"):
                above = member(theirs, node.name)
                if above is not None and isinstance(above.node, FunctionNode) and not _is_property(above.node):
                    is_open = any(
                        name.startswith("*") for name in parameters(above.node) or []
                    )  # theirs takes anything
                    takes = None if is_open else _accepted(node)
                    yield Touch(f"{owner}.{node.name}", f"{loss}.{node.name}", takes, used=source.where(node))

        for part in ast.walk(cls):
            if not isinstance(part, ast.Attribute) or part.attr.startswith(("__", OWN)):
                continue
            is_super = isinstance(part.value, ast.Call) and ast.unparse(part.value) == "super()"
            is_self = ast.unparse(part.value) == "self" and part.attr not in own
            if is_super or is_self:
                yield Touch(f"{owner}.{part.attr}", loss, used=source.where(part))


def _top(source: Source) -> str:
    return source.module.name.partition(".")[0]


def _is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in ast.unparse(one) for one in function.decorator_list)


def _accepted(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """The parameters that the method above may have, with `=` those of ours that it may lack."""
    given = function.args
    plain, keyword = [*given.posonlyargs, *given.args], zip(given.kwonlyargs, given.kw_defaults, strict=True)
    needed = len(plain) - len(given.defaults)
    names = [one.arg + ("=" if place >= needed else "") for place, one in enumerate(plain)]
    names += [one.arg + ("" if default is None else "=") for one, default in keyword]
    return ", ".join([*names, *(["..."] if given.vararg or given.kwarg else [])])


def _annotated(source: Source) -> Iterator[Touch]:
    replaced = {id(function): call for function, call, _ in _replacements(source)}
    for function in source.nodes:
        if not isinstance(function, FunctionNode):
            continue
        known = {one.arg: source.dotted(one.annotation) for one in (*function.args.args, *function.args.kwonlyargs)}
        loss = source.module.name
        if id(function) in replaced:
            call = replaced[id(function)]
            known[function.args.args[0].arg], loss = source.dotted(call.args[0]), _text(source, call.args[1])
        for part in ast.walk(function):
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                owner = known.get(part.value.id)
                if owner and not owner.startswith("torch.") and not part.attr.startswith(("__", OWN)):
                    yield Touch(f"{owner}.{part.attr}", loss, used=source.where(part))


# --- what no list has ---


def undeclared(upstream: Upstream) -> list[str]:
    """`file:line: name` of each name of another project that begins with an underscore, each private method of theirs
    that is overridden, and each module below the top of theirs (but for `upstream.public`), that the list lacks."""
    declared = {touch.name for touch in upstream.touches}
    words = [*declared, *(word for one in upstream.touches for word in one.says)]
    known = {part for word in words for part in word.split(".")}
    sources = list(sources_of(upstream))
    ours = {name for one in sources for node in one.nodes if isinstance(node, ast.ClassDef)
            for name in members_of(Definition(one.module, node))}  # fmt: skip

    found = []
    for source in sources:
        found += [(source, node, name) for node, name in _private(source, ours) if name not in known]
        for node, name in source.imports:
            place = name if load(name) is not None else name.rpartition(".")[0]
            is_public = any(f"{place}.".startswith(f"{public}.") for public in upstream.public)
            if place.count(".") and not is_public and place not in declared:
                found.append((source, node, place))
    found.sort(key=lambda one: (one[0].module.name, getattr(one[1], "lineno", 0)))
    return list(dict.fromkeys(f"{source.where(node)}: {name}" for source, node, name in found))


def _private(source: Source, ours: Collection[str]) -> Iterator[tuple[ast.AST, str]]:
    replaced = {name for _, _, name in _replacements(source)}
    for node in source.nodes:
        for name in _names_in(node, _top(source)):
            if name.startswith("_") and not name.startswith(("__", OWN)) and name not in NAMED_TUPLE | replaced:
                is_module = isinstance(node, ast.Attribute) and _is_module(source, node.value)
                if not is_module and (name not in ours or ast.unparse(node).startswith("super()")):
                    yield node, name
    for cls, theirs in source.classes:
        for node in cls.body:
            if isinstance(node, FunctionNode) and node.name.startswith("_") and not node.name.startswith("__"):
                above = member(theirs, node.name)
                if above is not None and above.is_known:
                    yield node, node.name


def _names_in(node: ast.AST, top: str) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.ImportFrom) and not node.level and node.module != "__future__":
        if (node.module or "").partition(".")[0] in (top, CORE):
            return []
        return [*(node.module or "").split("."), *(alias.name for alias in node.names)]
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in BY_NAME and len(node.args) > 1:
        return _text_in(node.args[1])
    return _text_in(node.slice) if isinstance(node, ast.Subscript) and "vars(" in ast.unparse(node.value) else []


def _text_in(node: ast.expr) -> list[str]:
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def _is_module(source: Source, expression: ast.expr) -> bool:
    """Whether it is a module of ours, whose names are ours."""
    found = evaluate(source.module, expression) if isinstance(expression, ast.Name) else None
    return found is not None and found.node is None and not source.is_theirs(found.module.name)
