"""The demo's model; tests/real unpacks it."""

from __future__ import annotations

import pytest

from sqft_plugins import model_files
from sqft_plugins.demo import base
from sqft_plugins.errors import DependencyError
from sqft_plugins.plugins.manager import build_manager


def test_without_the_plugin_that_reads_it_the_model_is_not_unpacked(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(model_files, "get_manager", lambda: build_manager([]))
    with pytest.raises(DependencyError, match=r"gguf_ext, .* is not loaded: unset SQFT_PLUGINS"):
        base.prepare_base(tmp_path / "base")
    assert not any(tmp_path.iterdir())
