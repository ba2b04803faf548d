"""Fixtures that several files share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(
    0, str(Path(__file__).parent)
)  # importlib mode keeps test folders, and the helpers in them, off the path

from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Answers are remembered for this test alone, and no data folder is taken from the environment."""
    monkeypatch.setenv("SQFT_EVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SQFT_DATA_DIR", raising=False)


@pytest.fixture
def quick_machine(monkeypatch):
    """Rates are measured for a moment only; their size is not what the tests of plans are about."""
    from sqft_plugins.plan import machine

    monkeypatch.setattr(machine, "GEMM_SECONDS", 0.005)
    monkeypatch.setattr(machine, "SAMPLE_OUTS", (16, 64))


@pytest.fixture(scope="session")
def folders(tiny_gemma, tmp_path_factory):
    """A tiny Gemma: dense, pruned, int4, and asymmetric with zero points. For all tests: copy one before a change."""
    root = tmp_path_factory.mktemp("folders")
    prune_folder(tiny_gemma, root / "pruned", method="magnitude")
    quantize_folder(root / "pruned", root / "int4")
    quantize_folder(root / "pruned", root / "asymmetric", group_size=64, symmetric=False)
    return {"dense": tiny_gemma, **{p.name: p for p in root.iterdir()}}
