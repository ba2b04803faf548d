"""Which package imports which: the contracts of pyproject.toml ([tool.importlinter]), and no circles.

Run it: `pytest tests/test_layers.py`. Imports within functions count, those for type checkers alone do not.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

pytestmark = pytest.mark.once
PACKAGES = ("sqft_plugins", "peft_ext", "vllm_ext", "gguf_ext")
CONFIG = Path(__file__).parents[1] / "pyproject.toml"


def test_the_contracts_are_kept():
    # in a process of its own: import-linter configures logging, which disables every logger that is there already
    code = f"import sys; from importlinter import cli; sys.exit(cli.lint_imports({str(CONFIG)!r}, no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CONFIG.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_of_the_architecture_page_has_the_rows_of_the_contract():
    contracts = tomllib.loads(CONFIG.read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract.get("containers") == ["sqft_plugins"])

    page = (CONFIG.parent / "docs" / "architecture.md").read_text()
    table = page.partition("| layer of `sqft_plugins` |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    rows = [[name.removesuffix(".py") for name in re.findall(r"`([^`]+)`", cell)] for cell in cells]
    assert rows == [layer.split(" | ") for layer in layers]


def test_no_module_imports_itself_through_others():
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while free := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in free}
    importers = {module for imported in left.values() for module in imported}
    assert sorted(left.keys() & importers) == []
