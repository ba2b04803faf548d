"""The measures of a folder: zeros that are kept, bits a weight."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import CheckpointError, MismatchError
from sqft_plugins.mask import pack_mask
from sqft_plugins.measure import bits_per_weight, zeros_kept
from sqft_plugins.structure import structure_of_folder

MODULE = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("name", ["pruned", "int4", "asymmetric"])
def test_zeros_kept(folders, name):
    dense, pruned = ModelFolder(folders["dense"]), ModelFolder(folders["pruned"])
    masks = pruned.masks
    assert zeros_kept(ModelFolder(folders[name]), masks) == 1.0
    zeros = torch.cat([dense.weight(module)[~pruned.mask(module)] == 0 for module in masks])
    assert zeros_kept(dense, masks) == int(zeros.sum()) / len(zeros) < 0.05  # random bfloat16, of which some are 0
    nothing = {MODULE: pack_mask(torch.ones(128, 64, dtype=torch.bool))}
    assert zeros_kept(ModelFolder(folders["dense"]), nothing) == 1.0


def test_zeros_kept_counts_positions_exactly(folders, tmp_path):
    copy = shutil.copytree(folders["pruned"], tmp_path / "copy")
    masks = {MODULE: ModelFolder(copy).masks[MODULE]}
    tensors = load_file(copy / "model.safetensors")
    weight = tensors[f"{MODULE}.weight"]
    rows, columns = (weight == 0).nonzero(as_tuple=True)
    weight[rows[:3], columns[:3]] = 1
    save_file(tensors, copy / "model.safetensors")
    assert zeros_kept(ModelFolder(copy), masks) == 1 - 3 / len(rows)


def test_bits_per_weight(folders):
    modules = list(structure_of_folder(folders["dense"]).shapes)
    assert bits_per_weight(ModelFolder(folders["dense"]), modules) == 16
    assert 4.5 < bits_per_weight(ModelFolder(folders["int4"]), modules) < 4.6  # 4 + 16/32, and the stored shape
    assert 4.3 < bits_per_weight(ModelFolder(folders["asymmetric"]), modules) < 4.4  # 4 + 16/64 + 4/64


def test_measures_refuse_another_models_masks(folders):
    folder = ModelFolder(folders["pruned"])
    with pytest.raises(MismatchError, match=rf"mask of {MODULE} is \(4, 8\)"):
        zeros_kept(folder, {MODULE: torch.zeros(4, 8, dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match=r"has no tensor other\.weight"):
        zeros_kept(folder, {"other": torch.zeros(4, 8, dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match=r"has no tensor other\.weight"):
        bits_per_weight(folder, ["other"])
