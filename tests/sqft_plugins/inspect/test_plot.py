"""The picture of inspect."""

from __future__ import annotations

import sys

import pytest
from helpers_inspect import make_adapter

from sqft_plugins.errors import DependencyError, OutputExistsError, SQFTError
from sqft_plugins.inspect import inspect_path, plot_sparsity


def test_plot(folders, tmp_path, monkeypatch):
    report = inspect_path(folders["int4"])
    adapter = inspect_path(make_adapter(tmp_path / "adapter", [4]))
    file = tmp_path / "zeros.png"
    with pytest.raises(SQFTError, match=r"has no known format: end it with \.png"):
        plot_sparsity(report, tmp_path / "zeros.xyz")
    with pytest.raises(SQFTError, match="is an adapter"):
        plot_sparsity(adapter, file)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(DependencyError, match=r"pip install 'sqft-plugins\[plot\]'"):
            plot_sparsity(report, file)
    pytest.importorskip("matplotlib")
    plot_sparsity(report, file)
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputExistsError):
        plot_sparsity(report, file)
