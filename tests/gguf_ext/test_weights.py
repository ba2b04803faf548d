"""A file's weights come back under the names of the checkpoint that it was exported from."""

from __future__ import annotations

import pytest

from gguf_ext import export_gguf
from gguf_ext.errors import UnsupportedArchitectureError
from gguf_ext.weights import checkpoint_weights
from sqft_plugins.checkpoint import ModelFolder


def test_every_weight_comes_back_under_its_name(gemma3, tmp_path):
    export_gguf(gemma3, tmp_path / "m.gguf")
    folder = ModelFolder(gemma3)
    weights = checkpoint_weights(tmp_path / "m.gguf", folder.config)
    assert set(weights) == set(folder.files) - {"lm_head.weight"}  # the embedding
    for name, weight in weights.items():
        wanted = folder.weight(name.removesuffix(".weight"))
        bound = 2e-7 if "norm" in name else 0  # the file holds 1 + weight, rounded
        assert (weight - wanted).abs().max() <= bound, name


def test_rows_in_another_order_are_refused(llama, tmp_path):
    export_gguf(llama, tmp_path / "m.gguf")
    with pytest.raises(UnsupportedArchitectureError, match=r"q_proj stands otherwise in a file: give a folder"):
        checkpoint_weights(tmp_path / "m.gguf", ModelFolder(llama).config)
