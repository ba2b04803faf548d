"""A model whose weights stay on disk."""

from __future__ import annotations

import pytest
import torch
from helpers_compress import SMALL, tokens
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.skeleton import Skeleton
from sqft_plugins.errors import CheckpointError
from sqft_plugins.structure import find_blocks


def test_a_skeleton_computes_what_the_model_computes(folder_of, family) -> None:
    path = folder_of(family)
    skeleton = Skeleton(ModelFolder(path))
    for index, block in enumerate(find_blocks(skeleton.model)[1]):
        skeleton.load_block(index, block)
    with torch.no_grad():
        ours = skeleton.model.base_model(tokens(), use_cache=False)[0]
        theirs = load_model(path, dtype=torch.float32).base_model(tokens(), use_cache=False)[0]
    assert torch.equal(ours, theirs)
    for block in find_blocks(skeleton.model)[1]:
        skeleton.free(block)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_a_weight_of_another_shape_than_the_config_says_is_named(folder_of, tmp_path) -> None:
    path = folder_of("llama")
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(64, 64)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is \(64, 64\) but its config"):
        prune_folder(tmp_path, tmp_path / "out", **SMALL)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight \(and lacks 0 more\)"):
        prune_folder(tmp_path, tmp_path / "out", **SMALL)
