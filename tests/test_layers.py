"""Which package imports which: the contracts of pyproject.toml ([tool.importlinter]), and no circles.

Run it: `pytest tests/test_layers.py`. Imports within functions count, those for type checkers alone do not.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp

PACKAGES = ("sqft_plugins", "peft_ext", "vllm_ext", "gguf_ext")
CONFIG = Path(__file__).parents[1] / "pyproject.toml"


def test_the_contracts_are_kept():
    # in a process of its own: import-linter configures logging, which disables every logger that is there already
    code = f"import sys; from importlinter import cli; sys.exit(cli.lint_imports({str(CONFIG)!r}, no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CONFIG.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_imports_itself_through_others():
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while free := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in free}
    importers = {module for imported in left.values() for module in imported}
    assert sorted(left.keys() & importers) == []
