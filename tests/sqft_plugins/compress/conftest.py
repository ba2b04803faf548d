"""Folders that the tests of compression share."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path


@pytest.fixture(scope="module")
def folder_of(tiny_model, tiny_tokenizer, tmp_path_factory):
    """folder_of(family, **changes) → a tiny model's folder, made once."""
    made = {}

    def make(family: str, **changes):
        key = family, json.dumps(changes, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("models") / family
            tiny_model(family, **changes).save_pretrained(made[key])
            tiny_tokenizer("byte-level").save_pretrained(made[key])
        return made[key]

    return make
