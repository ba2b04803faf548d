"""What inspect and measure say about folders made for the purpose."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.grid import int4_weight
from sqft_plugins.inspect import inspect_path
from sqft_plugins.inspect.model import float_type, gguf_type
from sqft_plugins.structure import structure_of_folder

MODULE = "model.layers.0.mlp.up_proj"


def test_a_dense_folder(folders):
    report = inspect_path(folders["dense"])
    assert [row["name"] for row in report["layers"]] == list(structure_of_folder(folders["dense"]).shapes)
    total = report["total"]
    assert (total["pruned"], total["violations"], report["stamp"], report["grid"]) == (None, None, None, None)
    assert total["bits_per_weight"] == 16
    exact = {
        row["name"]: float_type(load_file(folders["dense"] / "model.safetensors")[f"{row['name']}.weight"])
        for row in report["layers"]
    }
    assert {row["name"]: row["gguf"] for row in report["layers"]} == exact
    assert sum(total["gguf"].values()) == 14
    assert report["bytes"] == (folders["dense"] / "model.safetensors").stat().st_size


def test_a_pruned_folder(folders):
    report = inspect_path(folders["pruned"])
    assert report["stamp"]["pipeline"] == ["magnitude"]
    assert report["total"]["zeros"] == report["total"]["pruned"] == 0.5
    assert report["total"]["violations"] == 0
    assert {row["dtype"] for row in report["layers"]} == {"bfloat16"}
    assert "codes" not in report["total"]


def test_an_int4_folder(folders):
    report, folder = inspect_path(folders["int4"]), ModelFolder(folders["int4"])
    total = report["total"]
    assert report["grid"] == {"bits": 4, "group_size": 32, "symmetric": True}
    assert total["dtypes"] == {"int4": 14}
    assert total["gguf"] == {"Q4_0": 14}
    assert sum(total["codes"]) == total["weights"]
    assert total["codes"][8] == round(total["zeros"] * total["weights"])
    row = next(row for row in report["layers"] if row["name"] == MODULE)
    quantized = folder.quantized(MODULE)
    assert row["codes"] == [int((quantized.codes == code).sum()) for code in range(16)]
    assert row["scale"] == [float(quantized.scale.min()), float(quantized.scale.max())]
    assert row["zeros"] == float((folder.weight(MODULE) == 0).double().mean())
    on_disk = sum(
        t.numel() * t.element_size() for n, t in load_file(folder.path / "model.safetensors").items() if MODULE in n
    )
    assert row["bits_per_weight"] == 8 * on_disk / row["weights"]
    json.dumps(report)


def test_asymmetric_layers_may_need_q5(folders):
    report = inspect_path(folders["asymmetric"])
    assert set(report["total"]["gguf"]) <= {"Q4_0", "Q5_0"}
    assert report["total"]["gguf"].get("Q5_0")


@pytest.mark.parametrize(
    ("columns", "codes", "zero_point", "expected"),
    [
        (32, (0, 15), 8, "Q4_0"),
        (32, (0, 15), 7, "Q5_0"),
        (32, (1, 14), 9, "Q4_0"),
        (32, (0, 1), 9, "Q5_0"),
        (48, (0, 15), 8, "none"),
    ],
)
def test_gguf_type(columns, codes, zero_point, expected):
    values = torch.full((1, columns), codes[0], dtype=torch.uint8)
    values[0, 0] = codes[1]
    weight = int4_weight(values, torch.ones(1, 1), torch.full((1, 1), zero_point, dtype=torch.uint8))
    assert gguf_type(weight) == expected


def test_broken_zeros_and_numbers_are_counted(folders, tmp_path):
    copy = shutil.copytree(folders["pruned"], tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    weight = tensors[f"{MODULE}.weight"]
    row, column = (int(n[0]) for n in (weight == 0).nonzero(as_tuple=True))
    weight[row, column] = 1
    weight[(weight != 0).nonzero(as_tuple=True)[0][-1], 0] = float("nan")
    save_file(tensors, copy / "model.safetensors")
    layer = next(layer for layer in inspect_path(copy)["layers"] if layer["name"] == MODULE)
    assert layer["violations"] in (1, 2)  # the NaN may have hit a pruned place as well
    assert layer["not_finite"] == 1
