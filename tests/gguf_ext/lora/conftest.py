"""Bases and their F32 files."""

from __future__ import annotations

import pytest

from gguf_ext import export_gguf


@pytest.fixture(scope="module")
def bases(tiny_model, tiny_tokenizer, tmp_path_factory):
    """`bases(family)` → (model folder, its F32 file), made once."""
    made = {}

    def base(family):
        if family not in made:
            place = tmp_path_factory.mktemp(family)
            tiny_model(family).save_pretrained(place / "model")
            tiny_tokenizer("byte-level").save_pretrained(place / "model")
            export_gguf(place / "model", place / "m.gguf", float_type="f32")
            made[family] = place / "model", place / "m.gguf"
        return made[family]

    return base
