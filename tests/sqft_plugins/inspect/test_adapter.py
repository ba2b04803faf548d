"""What inspect says of adapter folders."""

from __future__ import annotations

import json

import pytest
from helpers_inspect import make_adapter
from safetensors.torch import load_file, save_file

from sqft_plugins.errors import CheckpointError
from sqft_plugins.inspect import inspect_path


def test_an_adapter(tmp_path):
    report = inspect_path(make_adapter(tmp_path / "adapter", [8, 4, 4]))
    assert report["kind"] == "adapter"
    assert report["total"] == {"modules": 3, "parameters": 16 * 192, "not_finite": 0, "ranks": {"8": 1, "4": 2}}
    expected = {
        "name": "model.layers.1.mlp.up_proj",
        "rank": 4,
        "in": 64,
        "out": 128,
        "dtype": "float32",
        "parameters": 768,
        "not_finite": 0,
    }
    assert report["layers"][1] == expected
    assert (report["base"], report["alpha"], report["mask_hash"], report["stamp"]) == ("base", 16, "h", None)


def test_an_adapter_says_how_it_was_trained(tmp_path):
    adapter = make_adapter(tmp_path / "adapter", [4])
    assert inspect_path(adapter)["training"] is None
    told = {"tuner": "sqft", "training": {"steps": 2}, "dtype": "float32", "tokens": 9, "seconds": 1.5}
    (adapter / "training.json").write_text(json.dumps({**told, "losses": [3.0, 2.5, 2.0]}))
    assert inspect_path(adapter)["training"] == {**told, "first_loss": 3.0, "last_loss": 2.0}
    (adapter / "training.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"training\.json is not JSON"):
        inspect_path(adapter)


def test_broken_numbers_of_an_adapter_are_counted(tmp_path):
    adapter = make_adapter(tmp_path / "adapter", [4, 4])
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][3, 2] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    report = inspect_path(adapter)
    assert [row["not_finite"] for row in report["layers"]] == [0, 1]
    assert report["total"]["not_finite"] == 1


def test_damaged_adapters(tmp_path):
    adapter = make_adapter(tmp_path / "adapter", [4])
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is damaged or cut off"):
        inspect_path(adapter)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        inspect_path(adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is not JSON"):
        inspect_path(adapter)
    with pytest.raises(CheckpointError, match="is not a folder"):
        inspect_path(tmp_path / "none")
