"""What decides a model's answers is in its identity."""

from __future__ import annotations

import pytest

from sqft_plugins.checkpoint import load_model, load_tokenizer
from sqft_plugins.evaluate.identity import content_hash, identity

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("own_cache")


def test_what_decides_the_answers_decides_the_identity(tiny_llama, tiny_model, tmp_path) -> None:
    copy = tmp_path / "copy"
    load_model(tiny_llama).save_pretrained(copy)
    load_tokenizer(tiny_llama).save_pretrained(copy)
    before = identity(copy, {})
    (copy / "README.md").write_text("a card")
    assert identity(copy, {}) == before
    assert identity(copy, {"dtype": "float32"}) != before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert identity(copy, {}) != before


def test_every_part_of_a_split_gguf_decides(tmp_path) -> None:
    names = [f"m-{part:05}-of-00002.gguf" for part in (1, 2)]
    for name in (*names, "m-00001-of-00003.gguf", "other-00002-of-00002.gguf"):
        (tmp_path / name).write_text(name)
    before = content_hash(tmp_path / names[0])
    for name in ("m-00001-of-00003.gguf", "other-00002-of-00002.gguf"):
        (tmp_path / name).write_text("another model")
    assert content_hash(tmp_path / names[0]) == before
    (tmp_path / names[1]).write_text("other weights")
    assert content_hash(tmp_path / names[0]) != before
