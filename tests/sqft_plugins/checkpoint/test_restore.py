"""Models that stock transformers dequantized: grids and exact weights as `load_model` has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from sqft_plugins.checkpoint import ModelFolder, load_model, restore
from sqft_plugins.checkpoint.attached import has_grid
from sqft_plugins.checkpoint.restore import restore_grids
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.structure import find_linears, set_weight, weight_of

GRID = ("weight_scale", "weight_zero_point", "weight_shape")
LAYER = "model.layers.1.mlp.up_proj"


def stock(folder: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    config = CompressedTensorsConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype)


def as_5_24_leaves_it(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Plain linears that hold the codes rounded to the dtype of the scales, whatever transformers is installed."""
    source = load_model(folder, dtype)
    model = AutoModelForCausalLM.from_config(source.config, dtype=dtype)
    model.load_state_dict(source.state_dict())
    for name in ModelFolder(folder).int4.modules:
        exact = ModelFolder(folder).quantized(name)
        set_weight(model.get_submodule(name), exact.dequantize(ModelFolder(folder).int4.scale_spec(name).dtype))
    model.name_or_path = str(folder)
    return model


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (-1, True), (64, False)])
def test_a_stock_model_becomes_that_of_our_loader(request, tmp_path, family, group_size, symmetric):
    """Weights, parts of the grid with dtypes, scheme, status; and a folder of plain linears when it is saved."""
    prune_folder(request.getfixturevalue(f"tiny_{family}"), tmp_path / "pruned", method="magnitude")
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", group_size=group_size, symmetric=symmetric)
    for dtype in ("auto", torch.float32):
        theirs, ours = stock(tmp_path / "int4", dtype), load_model(tmp_path / "int4", dtype)
        restore_grids(theirs)
        for name in ModelFolder(tmp_path / "int4").int4.modules:
            a, b = theirs.get_submodule(name), ours.get_submodule(name)
            assert torch.equal(a.weight, b.weight), name
            for part in GRID:
                if part == "weight_zero_point" and symmetric:
                    assert not hasattr(b, part)
                    continue
                assert torch.equal(getattr(a, part), getattr(b, part)), (name, part)
                assert getattr(a, part).dtype == getattr(b, part).dtype, (name, part)
                assert getattr(a, part).requires_grad == getattr(b, part).requires_grad is False
            schemes = [layer.quantization_scheme.weights.model_dump(exclude={"zp_dtype"}) for layer in (a, b)]
            assert schemes[0] == schemes[1]
            assert a.quantization_status == b.quantization_status
        assert theirs.config.to_dict().keys() == ours.config.to_dict().keys()
        assert theirs.generation_config.to_dict() == ours.generation_config.to_dict()

    theirs.save_pretrained(tmp_path / "saved")
    assert not [name for name in load_file(tmp_path / "saved" / "model.safetensors") if name.endswith(GRID)]


def test_weights_that_were_rounded_early_are_made_exact_and_it_is_said(tiny_gemma, tmp_path, capsys):
    quantize_folder(tiny_gemma, tmp_path / "int4")
    model, folder = as_5_24_leaves_it(tmp_path / "int4"), ModelFolder(tmp_path / "int4")
    wrong = sum(int((weight_of(model.get_submodule(n)) != folder.weight(n)).sum()) for n in folder.int4.modules)
    assert wrong > 0
    kept = model.get_submodule(LAYER).weight

    restore_grids(model)
    assert f"{wrong} weights are exact now, which transformers had rounded" in capsys.readouterr().err
    assert model.get_submodule(LAYER).weight is kept
    for name in folder.int4.modules:
        assert torch.equal(weight_of(model.get_submodule(name)), folder.weight(name))
    restore_grids(model)
    assert "exact" not in capsys.readouterr().err


def test_what_is_not_the_folders_weight_stays_as_it_is(int4, pruned, monkeypatch):
    model = as_5_24_leaves_it(int4)
    with torch.no_grad():
        model.get_submodule(LAYER).weight[3, 5] += 0.01
    changed = model.get_submodule(LAYER).weight.clone()
    restore_grids(model)
    assert torch.equal(model.get_submodule(LAYER).weight, changed)
    assert {n for n, layer in model.named_modules() if has_grid(layer)} == set(find_linears(model)) - {LAYER}

    # not one layer is read where the folder is float
    monkeypatch.setattr(restore, "_restore", None)
    restore_grids(load_model(pruned))


def test_a_model_without_its_folder_stays_as_it_is(int4, tmp_path):
    """Gone, no model folder, another format."""
    other = shutil.copytree(int4, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (other / "config.json").write_text(json.dumps(config))
    for path in (tmp_path / "gone", tmp_path, other, "", "org/never-downloaded"):
        model = as_5_24_leaves_it(int4)
        model.name_or_path = str(path)
        restore_grids(model)
        assert not [name for name, layer in model.named_modules() if has_grid(layer)]


def test_a_name_on_the_hub_is_found_in_its_cache_without_asking(int4, monkeypatch):
    model = as_5_24_leaves_it(int4)
    model.name_or_path = "org/model"
    cached = {("org/model", "config.json"): str(int4 / "config.json")}
    monkeypatch.setattr(restore, "try_to_load_from_cache", lambda *asked: cached.get(asked))
    restore_grids(model)
    assert has_grid(model.get_submodule(LAYER))


def test_weights_that_are_not_there_or_still_packed_stay(int4):
    packed = AutoModelForCausalLM.from_pretrained(int4)
    restore_grids(packed)
    assert "weight" not in packed.get_submodule(LAYER)._parameters
    model = as_5_24_leaves_it(int4)
    model.get_submodule(LAYER).to("meta")
    restore_grids(model)
    assert not has_grid(model.get_submodule(LAYER))
