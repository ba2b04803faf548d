"""A pruned and an INT4 model that the tests of the report share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path


@pytest.fixture(scope="session")
def models(tiny_llama, tmp_path_factory):
    """A folder with `pruned` and, made of it, `int4`."""
    root = tmp_path_factory.mktemp("report")
    prune_folder(tiny_llama, root / "pruned", method="magnitude", sparsity=0.5)
    quantize_folder(root / "pruned", root / "int4")
    return root
