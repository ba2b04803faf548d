"""Damaged folders: every error names the file, before the long work where it can be known before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.checkpoint import folder as folder_module
from sqft_plugins.checkpoint.tensors import read_tensor
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, GridError, SQFTError
from sqft_plugins.inspect import inspect_path
from sqft_plugins.mask import mask_hash

MODULE = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def originals(tiny_llama, tmp_path_factory) -> Path:
    """sharded: float. pruned, int4 (asymmetric): one file."""
    folder = tmp_path_factory.mktemp("originals")
    load_model(tiny_llama).save_pretrained(folder / "sharded", max_shard_size="100KB")
    prune_folder(tiny_llama, folder / "pruned", method="magnitude")
    quantize_folder(folder / "pruned", folder / "int4", symmetric=False)
    return folder


@pytest.fixture
def int4(originals, tmp_path) -> Path:
    return shutil.copytree(originals / "int4", tmp_path / "int4")


def change_tensors(folder: Path, **changes) -> None:
    """weight_scale=..., of `MODULE`; None removes the tensor."""
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"{MODULE}.{part}": tensor for part, tensor in changes.items()}
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:4],
        lambda data: data[:100],  # in the header
        lambda data: data[:-1],  # in the data
        lambda data: data + b"\x00",
        lambda data: b"\xff" * 8 + data[8:],  # the length of the header
        lambda data: data[:8] + b"x" + data[9:],  # no JSON
        lambda data: data.replace(b'"F32"', b'"F64"'),  # shapes and offsets disagree
        lambda data: b"<html>not found</html>",
    ],
)
@pytest.mark.parametrize("which", ["sharded", "pruned"])
def test_a_damaged_shard_is_named(originals, tmp_path, which, damage):
    copy = shutil.copytree(originals / which, tmp_path / "copy")
    file = max(copy.glob("model*.safetensors"))
    file.write_bytes(damage(file.read_bytes()))
    for attempt in (lambda: ModelFolder(copy).files, lambda: load_model(copy), lambda: inspect_path(copy)):
        with pytest.raises(CheckpointError, match=rf"{file.name} is damaged or cut off .*: copy the model again"):
            attempt()


def test_an_index_that_does_not_fit_its_files(originals, tmp_path):
    copy = shutil.copytree(originals / "sharded", tmp_path / "copy")
    index = copy / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    first, *_, last = sorted(entries["weight_map"].items())
    for weight_map, message in [
        (
            {**entries["weight_map"], first[0]: "model-00009-of-00009.safetensors"},
            "model-00009-.* is named in .* missing",
        ),
        ({**entries["weight_map"], first[0]: last[1]}, rf"index\.json says that {first[0]} is in {last[1]}, it is not"),
        ({**entries["weight_map"], "other": last[1]}, "says that other is in"),
        (None, r"index\.json is no weight index"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        for attempt in (lambda: ModelFolder(copy).files, lambda: load_model(copy)):
            with pytest.raises(CheckpointError, match=message):
                attempt()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, 1e-6, 65536.0, -70000.0])
def test_a_scale_outside_the_exact_range_is_named(int4, value):
    scale = load_file(int4 / "model.safetensors")[f"{MODULE}.weight_scale"]
    scale[3, 1] = value
    change_tensors(int4, weight_scale=scale)
    for attempt in (lambda: ModelFolder(int4).quantized(MODULE), lambda: inspect_path(int4)):
        with pytest.raises(
            GridError, match=rf"model\.safetensors: {MODULE}\.weight_scale holds .*outside the exact range"
        ):
            attempt()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_zero_point": None}, r"has no tensor model\.layers\.0\.mlp\.up_proj\.weight_zero_point"),
        ({"weight_scale": None}, r"has no tensor model\.layers\.0\.mlp\.up_proj\.weight_scale"),
        ({"weight_shape": None}, r"has no tensor model\.layers\.0\.mlp\.up_proj\.weight_shape"),
        ({"weight_zero_point": torch.zeros(3, 2).int()}, r"weight_zero_point of .* is \(3, 2\), expected \(16, 2\)"),
        (
            {"weight_scale": torch.ones(128, 1)},
            r"weight_scale of .*model\.safetensors is \(128, 1\), expected \(128, 2\)",
        ),
        ({"weight_packed": torch.zeros(128, 7).int()}, r"weight_packed of .* is \(128, 7\), expected \(128, 8\)"),
        ({"weight_shape": torch.tensor([128, 80])}, "group_size=32 does not divide in=80"),
        ({"weight_shape": torch.tensor([128])}, r"weight_shape of .* is \(1,\), expected \(2,\)"),
    ],
)
def test_int4_tensors_that_are_missing_or_of_another_shape_are_named(int4, changes, message):
    change_tensors(int4, **changes)
    with pytest.raises(SQFTError, match=message):
        ModelFolder(int4).quantized(MODULE)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (file, text)
        for file in ("config.json", "sqft/stamp.json", "model.safetensors.index.json")
        for text in (b"[]", b"3", b"\xff\xfe{}", b"[" * 20000)
    ],
)
def test_json_that_holds_no_object_is_named(originals, tmp_path, file, text):
    folder = shutil.copytree(originals / ("sharded" if "index" in file else "int4"), tmp_path / "copy")
    (folder / file).write_bytes(text)
    with pytest.raises(CheckpointError, match=rf"{file} (is not JSON|holds no JSON object)"):
        _ = ModelFolder(folder).stamp, ModelFolder(folder).files


def test_a_quantization_config_that_is_no_object_or_names_no_grid_of_ours(int4):
    config = json.loads((int4 / "config.json").read_text())
    (weights,) = [group["weights"] for group in config["quantization_config"]["config_groups"].values()]
    for key, value in (("group_size", None), ("symmetric", "x"), ("strategy", "tensor"), ("num_bits", "x")):
        changed = json.loads(json.dumps(config))
        changed["quantization_config"]["config_groups"]["group_0"]["weights"] = {**weights, key: value}
        (int4 / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=r"has no weight groups|not of integers|num_bits='x'"):
            _ = ModelFolder(int4).grid
    (int4 / "config.json").write_text(json.dumps({**config, "quantization_config": "none"}))
    with pytest.raises(CheckpointError, match="quantization_config is no JSON object"):
        _ = ModelFolder(int4).files


def test_a_config_that_transformers_does_not_know(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for changes in ({"model_type": "no-such"}, {"hidden_size": "64"}):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CheckpointError, match="no language model that transformers knows") as one:
            prune_folder(folder, tmp_path / "out", method="magnitude")
        assert "\n" not in str(one.value)


def test_a_config_without_weight_groups(int4):
    config = json.loads((int4 / "config.json").read_text())
    for groups in (None, {}, {"group_0": {}}):
        config["quantization_config"]["config_groups"] = groups
        (int4 / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"has no weight groups|not of integers|num_bits='x'"):
            _ = ModelFolder(int4).grid


@pytest.mark.parametrize("which", ["pruned", "int4"])
def test_the_masks_of_another_model(originals, tmp_path, which):
    """Another shape and a layer that is not there, float and INT4; the same shapes show in the hash."""
    copy = shutil.copytree(originals / which, tmp_path / "copy")
    file = copy / "sqft" / "mask.safetensors"
    masks = {name: packed.clone() for name, packed in ModelFolder(copy).masks.items()}
    save_file({**masks, MODULE: masks[MODULE][:, :4].clone(), "other": masks[MODULE]}, file)
    folder = ModelFolder(copy)
    with pytest.raises(
        CheckpointError, match=rf"mask of {MODULE} is \(128, 4\) but its weight \(128, 64\): the mask is an"
    ):
        folder.mask(MODULE)
    with pytest.raises(CheckpointError, match=r"has no tensor other\.weight: .* they are another model's"):
        folder.mask("other")
    save_file({**masks, MODULE: ~masks[MODULE]}, file)
    assert mask_hash(ModelFolder(copy).masks) != folder.stamp.mask_hash  # type: ignore[union-attr]
    assert inspect_path(copy)["mask_is_the_stamps"] is False


# --- masks are read when they are asked for ---


def test_packed_masks_are_a_mapping_that_reads_one_mask_at_a_time(originals, monkeypatch):
    folder = ModelFolder(originals / "pruned")
    stored = load_file(originals / "pruned" / "sqft" / "mask.safetensors")
    reads: list[str] = []
    monkeypatch.setattr(folder_module, "read_tensor", lambda file, name: reads.append(name) or read_tensor(file, name))
    masks = folder.masks
    assert masks
    assert MODULE in masks
    assert "other" not in masks
    assert (len(masks), set(masks), masks.get("other")) == (len(stored), set(stored), None)
    assert not reads
    assert torch.equal(masks[MODULE], stored[MODULE])
    assert reads == [MODULE]
    assert all(torch.equal(packed, stored[name]) for name, packed in dict(masks).items())
    assert mask_hash(masks) == mask_hash(stored) == folder.stamp.mask_hash  # type: ignore[union-attr]
    with pytest.raises(KeyError):
        masks["other"]
    assert not ModelFolder(originals / "sharded").masks
