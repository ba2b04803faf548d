"""`make docs`: the site builds without a warning, so no link is dead and every public name has a page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.conftest import ROOT

pytestmark = pytest.mark.once


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    warnings = [line for line in built.stderr.splitlines() if not line.startswith("INFO")]
    assert built.returncode == 0, "\n".join(warnings)
    assert (tmp_path / "site/reference/commands/index.html").read_text().count("Usage: sqft") > 15


def test_a_public_name_without_a_page_stops_the_build(monkeypatch, tmp_path: Path) -> None:
    import importlib.util

    import pytest
    from mkdocs.exceptions import BuildError

    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/_generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    monkeypatch.setattr(generate, "_inventory", lambda file: set())
    with pytest.raises(BuildError, match=r"peft_ext\.SQFTConfig"):
        generate.on_post_build({"site_dir": str(tmp_path)})


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
