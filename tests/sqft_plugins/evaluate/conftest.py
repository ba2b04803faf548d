"""The tasks' data and a short task, which the tests of the evaluation share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sqft_plugins.evaluate.harness import FOLDER

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path

from helpers_eval import write_data


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def short(tmp_path):
    """A user's task file: svamp with few new tokens, as the tiny models have a context of 256."""
    file = tmp_path / "short.yaml"
    ours = FOLDER / "svamp.yaml"
    file.write_text(f"include: {ours}\ntask: short\ngeneration_kwargs: {{until: ['Question:'], max_gen_toks: 16}}\n")
    return str(file)
