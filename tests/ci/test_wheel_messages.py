"""Whoever installed the wheel has no clone: no message, help page or remedy may send them to a file of one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONLY_IN_A_CLONE = re.compile(
    r"\b(docs|examples|tests|benchmarks|pins)/|\.ci/|\bmake (install|test|demo|docs|lock|clean)\b|"
    r"\b(README|CONTRIBUTING|CHANGELOG|SECURITY)\.md of|constraints\.txt|pyproject\.toml"
)


def texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """The strings that can be shown: all but docstrings. Those behind `@verb(…)` and the like are help pages."""
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            hidden.add(node.value)
    for node in ast.walk(tree):
        called = isinstance(node, ast.FunctionDef) and any(isinstance(each, ast.Call) for each in node.decorator_list)
        if called and isinstance(node.body[0], ast.Expr):
            hidden.discard(node.body[0].value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in hidden:
            yield node


def dead_ends(source: str) -> list[tuple[int, str]]:
    return [(node.lineno, node.value) for node in texts(ast.parse(source)) if ONLY_IN_A_CLONE.search(node.value)]


@pytest.mark.parametrize("package", ["sqft_plugins", "peft_ext", "vllm_ext", "gguf_ext"])
def test_no_message_names_what_only_a_clone_has(package):
    found = [
        f"{file.relative_to(ROOT)}:{line}: {text}"
        for file in sorted((ROOT / package).rglob("*.py"))
        for line, text in dead_ends(file.read_text(encoding="utf-8"))
    ]
    assert not found


def test_the_search_sees_messages_and_help_pages_and_no_docstrings():
    assert dead_ends('raise E(f"no {x}: make install, or {y}")') == [(1, ": make install, or ")]
    assert dead_ends('@verb()\ndef command():\n    """As docs/how-to/x.md says."""')
    assert not dead_ends('"""docs/x.md"""\ndef f():\n    """examples/x"""\n\nX = 1\n"""docs/x.md"""')
