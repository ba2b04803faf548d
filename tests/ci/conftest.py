"""The installation, the wheel: nothing here depends on the lane that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.once)


@pytest.fixture
def release() -> dict[str, Any]:
    """The workflow that builds, tries and publishes."""
    file = Path(__file__).parents[2] / ".github" / "workflows" / "release.yml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))
