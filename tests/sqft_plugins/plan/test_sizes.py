"""Sizes on disk, to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.compact_convert import compact_folder
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.plan import PlanSettings, plan_folder

pytestmark = pytest.mark.usefixtures("quick_machine")


def stages(report) -> dict:
    return {stage["stage"]: stage for stage in report["stages"]}


def on_disk(folder: Path) -> tuple[int, int]:
    """Bytes of the weight files, and of everything else."""
    weights = ModelFolder(folder).weight_bytes
    return weights, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) - weights


def bits(folder: Path, modules) -> float:
    read = ModelFolder(folder)
    weights = sum(read.mask(module).numel() for module in modules)
    return 8 * sum(read.spec(name).nbytes for module in modules for name in read.parts(module)) / weights


@pytest.mark.parametrize(
    ("group_size", "symmetric", "sparsity"), [(32, True, 0.5), (64, False, "2:4"), (-1, True, 0.3), (-1, False, "1:4")]
)
def test_sizes_are_those_of_the_folders_that_are_written(family, tiny_model, tmp_path, group_size, symmetric, sparsity):
    tiny_model(family).save_pretrained(tmp_path / "base")
    settings = PlanSettings(sparsity=sparsity, group_size=group_size, symmetric=symmetric, method="magnitude")
    planned = stages(plan_folder(tmp_path / "base", settings))
    prune_folder(tmp_path / "base", tmp_path / "pruned", method="magnitude", sparsity=sparsity)
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", group_size=group_size, symmetric=symmetric)
    modules = list(ModelFolder(tmp_path / "pruned").masks)
    for stage, folder in (("source", "base"), ("pruned", "pruned"), ("INT4", "int4"), ("merged", "pruned")):
        weights, other = on_disk(tmp_path / folder)
        assert planned[stage]["bytes"] == weights, stage
        assert abs(planned[stage]["other"] - other) < 4096, stage  # config.json grows, and there is stamp.json
        if folder != "base":
            assert planned[stage]["bits_per_weight"] == bits(tmp_path / folder, modules)
    assert planned["merged INT4"]["bytes"] == planned["INT4"]["bytes"]


@pytest.mark.parametrize(("symmetric", "sparsity"), [(True, 0.5), (False, "2:4"), (True, 0.3)])
def test_the_compact_form_is_at_most_what_is_planned(tiny_llama, tmp_path, symmetric, sparsity):
    planned = stages(plan_folder(tiny_llama, PlanSettings(sparsity=sparsity, symmetric=symmetric)))["compact"]
    prune_folder(tiny_llama, tmp_path / "pruned", method="magnitude", sparsity=sparsity)
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", symmetric=symmetric)
    compact_folder(tmp_path / "int4", tmp_path / "compact")
    assert not planned["exact"]
    assert planned["bytes"] == ModelFolder(tmp_path / "compact").weight_bytes  # random weights have no zeros before


def test_a_sharded_source_and_layers_left_out(tiny_llama, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    whole = load_file(base / "model.safetensors")
    names = sorted(whole)
    index = {}
    for number, chosen in enumerate((names[::2], names[1::2]), 1):
        save_file({name: whole[name] for name in chosen}, base / f"model-{number}.safetensors", {"format": "pt"})
        index |= dict.fromkeys(chosen, f"model-{number}.safetensors")
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    report = plan_folder(base, PlanSettings(exclude=["down_proj"]))
    quantize_folder(base, tmp_path / "int4", exclude=["down_proj"])
    assert report["modules"] == 12
    assert stages(report)["INT4"]["bytes"] == ModelFolder(tmp_path / "int4").weight_bytes


def test_adapters_are_as_peft_saves_them(tiny_llama, tmp_path):
    pytest.importorskip("peft")
    from peft import get_peft_model

    from peft_ext import SQFTConfig
    from sqft_plugins.checkpoint import load_model

    choices = {"r": 8, "rank_choices": [8, 6, 4], "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    get_peft_model(load_model(tiny_llama), SQFTConfig(sparse=False, **choices)).save_pretrained(tmp_path / "adapter")
    settings = PlanSettings(rank=8, rank_choices=["8", "6", "4"], target_modules=["q_proj", "down_proj"])
    report = plan_folder(tiny_llama, settings)
    assert report["targets"] == 4
    planned = stages(report)
    assert planned["adapter, rank 8"]["bytes"] == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    difference = planned["adapter, rank 8"]["bytes"] - planned["adapter, rank 6"]["bytes"]
    assert abs(difference - 4 * 2 * 2 * (64 + 64 + 128 + 64)) < 64  # two ranks of two layers of two kinds


def test_default_targets_that_the_model_lacks_are_no_error(tiny_model, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    report = plan_folder(tmp_path / "gpt2")
    assert report["targets"] == 0
    assert [step["step"].split()[0] for step in report["steps"]] == ["prune", "quantize", "eval", "export"]
    assert plan_folder(tmp_path / "gpt2", PlanSettings(target_modules=["all-linear"]))["targets"] == 8


def test_the_stored_names_of_a_bare_body(tiny_model, tmp_path):
    """GPT-2 as it is published: what we write has the model's own names, which are longer."""
    tiny_model("gpt2").save_pretrained(tmp_path / "bare")
    tensors = load_file(tmp_path / "bare" / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "bare" / "model.safetensors", {"format": "pt"})
    planned = stages(plan_folder(tmp_path / "bare"))
    prune_folder(tmp_path / "bare", tmp_path / "pruned", method="magnitude")
    assert planned["pruned"]["bytes"] == ModelFolder(tmp_path / "pruned").weight_bytes
    assert planned["source"]["bytes"] == (tmp_path / "bare" / "model.safetensors").stat().st_size
