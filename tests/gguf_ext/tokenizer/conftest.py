"""A model folder around a tokenizer."""

from __future__ import annotations

import pytest

SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}


@pytest.fixture
def folder_of(make, tmp_path):
    """`folder_of(tokenizer, name)`: a model folder with this tokenizer, as it stands."""

    def folder(tokenizer, name="model", **changes):
        return make["llama"](tokenizer, tmp_path / name, **{**SMALL, **changes})

    return folder
