"""Fixtures that several files share."""

from __future__ import annotations

import pytest


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
