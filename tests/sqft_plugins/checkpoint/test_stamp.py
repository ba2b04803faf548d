"""The stamp and the masks beside a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sqft_plugins.checkpoint import ModelFolder, Stamp, load_model, write_sidecar
from sqft_plugins.errors import CheckpointError
from sqft_plugins.mask import mask_hash, pack_mask


@pytest.fixture
def copy(pruned, tmp_path) -> Path:
    return shutil.copytree(pruned, tmp_path / "copy")


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_sidecar_survives_loading_and_saving_again(pruned, tmp_path):
    """transformers may drop the flag in config.json, never the subfolder: sqft/stamp.json is the authority."""
    folder = ModelFolder(pruned)
    model = load_model(pruned)
    model.save_pretrained(tmp_path / "again")
    assert ModelFolder(tmp_path / "again").stamp is None
    write_sidecar(tmp_path / "again", folder.stamp, folder.masks)  # type: ignore[arg-type]
    again = ModelFolder(tmp_path / "again")
    assert again.stamp == folder.stamp
    assert again.config["sqft"]["pipeline"] == ["wanda"]


def test_stamp_of_an_int4_folder(int4, pruned):
    stamp = ModelFolder(int4).stamp
    assert stamp is not None
    assert stamp.grid is not None
    assert stamp.scale_hash is not None
    assert stamp.mask_hash == ModelFolder(pruned).stamp.mask_hash  # type: ignore[union-attr]
    config = json.loads((int4 / "config.json").read_text())
    assert config["quantization_config"]["sqft"]["scale_hash"] == stamp.scale_hash
    assert "sqft" not in config
    assert not list((int4 / "sqft").glob("model*"))


def test_then_adds_a_step_and_keeps_the_rest():
    first = Stamp(pipeline=["wanda"], base="b", sparsity=0.5, mask_hash="h")
    assert first.then("merge", ranks={"a": 4}).model_dump(exclude={"created_by"}) == {
        **first.model_dump(exclude={"created_by"}), "pipeline": ["wanda", "merge"], "ranks": {"a": 4},
    }  # fmt: skip


def test_stamps_that_cannot_be_read(copy):
    stamp = copy / "sqft" / "stamp.json"
    original = stamp.read_text()
    for changes, message in [
        ({"version": 99}, r"stamp version 99, this release reads up to 1: upgrade sqft-plugins"),
        ({"version": "1"}, "stamp version 1"),
        ({"sparsity": "half"}, "stamp field sparsity"),
        ({"colour": 1}, "stamp field colour"),
    ]:
        change_json(stamp, **changes)
        with pytest.raises(CheckpointError, match=message):
            _ = ModelFolder(copy).stamp
        stamp.write_text(original)
    stamp.write_text("{")
    with pytest.raises(CheckpointError, match=r"stamp\.json is not JSON"):
        _ = ModelFolder(copy).stamp


def test_masks_that_do_not_hash_to_the_stamp_are_not_written(copy):
    masks = {"a": pack_mask(torch.ones(2, 8, dtype=torch.bool))}
    with pytest.raises(CheckpointError, match="mask_hash does not belong to the masks"):
        write_sidecar(copy, Stamp(pipeline=[], sparsity=0.0, mask_hash="other"), masks)
    write_sidecar(copy, Stamp(pipeline=[], sparsity=0.0, mask_hash=mask_hash(masks)), masks)
