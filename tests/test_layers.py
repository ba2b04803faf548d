"""Which package imports which: the contracts of pyproject.toml ([tool.importlinter]), and no circles.

Run it: `pytest tests/test_layers.py`. Imports within functions count, those for type checkers alone do not.
"""

from __future__ import annotations

import os
from pathlib import Path

import grimp
from importlinter import cli

PACKAGES = ("sqft_plugins", "peft_ext", "vllm_ext", "gguf_ext")
CONFIG = Path(__file__).parents[1] / "pyproject.toml"


def test_the_contracts_are_kept(capsys):
    status = cli.lint_imports(config_filename=os.fspath(CONFIG), no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_no_module_imports_itself_through_others():
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while free := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in free}
    importers = {module for imported in left.values() for module in imported}
    assert sorted(left.keys() & importers) == []
