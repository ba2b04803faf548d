"""The numbers of a compression's report."""

from __future__ import annotations

import sys
from pathlib import Path

from sqft_plugins.compress.report import peak_memory_mib


def test_the_peak_memory_is_0_where_the_system_does_not_say(monkeypatch):
    assert peak_memory_mib() > 10

    def missing(*_):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)  # no /proc: macOS, Windows
    assert peak_memory_mib() > 10
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows
    assert peak_memory_mib() == 0
