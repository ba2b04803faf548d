import importlib.metadata
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path
from helpers_canary import Written


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    # it looks at every installed file, a second long, and what is written here has no metadata
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    return Written(tmp_path)
