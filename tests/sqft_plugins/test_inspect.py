"""What inspect and measure say about folders made for the purpose."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, DependencyError, MismatchError, OutputExistsError, SQFTError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.inspect import gguf_type, inspect_path, plot_sparsity
from sqft_plugins.inspect.model import float_type
from sqft_plugins.mask import pack_mask
from sqft_plugins.measure import bits_per_weight, zeros_kept
from sqft_plugins.structure import structure_of_folder

MODULE = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def folders(tiny_gemma, tmp_path_factory):
    root = tmp_path_factory.mktemp("inspect")
    prune_folder(tiny_gemma, root / "pruned", method="magnitude")
    quantize_folder(root / "pruned", root / "int4")
    quantize_folder(root / "pruned", root / "asymmetric", group_size=64, symmetric=False)
    return {"dense": tiny_gemma, **{p.name: p for p in root.iterdir()}}


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
    weight = QuantizedWeight(values, torch.ones(1, 1), torch.full((1, 1), zero_point, dtype=torch.uint8))
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


@pytest.mark.parametrize("name", ["pruned", "int4", "asymmetric"])
def test_zeros_kept(folders, name):
    masks = ModelFolder(folders["pruned"]).masks
    assert zeros_kept(ModelFolder(folders[name]), masks) == 1.0
    assert zeros_kept(ModelFolder(folders["dense"]), masks) < 0.01
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


def make_adapter(path, ranks):
    path.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "base", "lora_alpha": 16, "r": 8, "mask_hash": "h"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for index, rank in enumerate(ranks):
        name = f"base_model.model.model.layers.{index}.mlp.up_proj"
        tensors[f"{name}.lora_A.weight"] = torch.zeros(rank, 64)
        tensors[f"{name}.lora_B.weight"] = torch.zeros(128, rank)
    save_file(tensors, path / "adapter_model.safetensors")
    return path


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


def test_plot(folders, tmp_path, monkeypatch):
    report = inspect_path(folders["int4"])
    adapter = inspect_path(make_adapter(tmp_path / "adapter", [4]))
    file = tmp_path / "zeros.png"
    with pytest.raises(SQFTError, match=r"has no known format: end it with \.png"):
        plot_sparsity(report, tmp_path / "zeros.xyz")
    with pytest.raises(SQFTError, match="is an adapter"):
        plot_sparsity(adapter, file)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(DependencyError, match=r"pip install 'sqft-plugins\[plot\]'"):
            plot_sparsity(report, file)
    pytest.importorskip("matplotlib")
    plot_sparsity(report, file)
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputExistsError):
        plot_sparsity(report, file)
