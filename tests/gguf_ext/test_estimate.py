"""What `sqft plan` says of a GGUF file is what the exporter writes."""

from __future__ import annotations

import pytest

from gguf_ext import export_gguf
from gguf_ext.errors import BlockSizeError, MissingTokenizerError, UnsupportedArchitectureError
from gguf_ext.estimate import estimate_gguf
from sqft_plugins.checkpoint import GridStamp, ModelFolder

SQFT_KEYS = 1024
"""Bytes that pipeline, hashes, base and the like take at most; the estimate knows nothing of them."""


def modules(folder) -> list[str]:
    return [name.removesuffix(".weight") for name in ModelFolder(folder).files if "_proj.weight" in name]


@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_a_float_file_to_the_byte(model, request, tmp_path):
    folder = request.getfixturevalue(model)
    estimate = estimate_gguf(folder, [], GridStamp())
    report = export_gguf(folder, tmp_path / "m.gguf", float_type="f32")
    assert estimate["bytes"] == report.bytes
    assert estimate["types"] == report.types


@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_an_int4_file_but_for_what_the_stamp_says(model, request, tmp_path):
    folder = request.getfixturevalue(model)
    estimate = estimate_gguf(folder, modules(folder), GridStamp())
    report = export_gguf(request.getfixturevalue(f"{model}_int4"), tmp_path / "m.gguf", float_type="f32")
    assert estimate["types"] == report.types
    assert 0 <= report.bytes - estimate["bytes"] < SQFT_KEYS


def test_an_asymmetric_file_is_at_most_that(llama, make, tmp_path):
    folder = make["int4"](llama, tmp_path / "int4", symmetric=False)
    estimate = estimate_gguf(llama, modules(llama), GridStamp(symmetric=False))
    report = export_gguf(folder, tmp_path / "m.gguf", float_type="f32")
    assert estimate["types"]["Q5_0"] == 14
    assert report.bytes < estimate["bytes"] + SQFT_KEYS


def test_what_cannot_be_exported_is_refused(llama, tmp_path, tiny_model):
    with pytest.raises(BlockSizeError, match="in groups of 16 does not fit blocks of 32"):
        estimate_gguf(llama, modules(llama), GridStamp(group_size=16))
    tiny_model("opt").save_pretrained(tmp_path / "opt")
    with pytest.raises(UnsupportedArchitectureError, match=r"llama\.cpp has no OPT"):
        estimate_gguf(tmp_path / "opt", [], GridStamp())
    tiny_model("llama").save_pretrained(tmp_path / "bare")
    with pytest.raises(MissingTokenizerError):
        estimate_gguf(tmp_path / "bare", [], GridStamp())
