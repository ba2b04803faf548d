"""Folders block by block: no zero lost, the shards of the source, in memory that depth does not fill."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers_compress import SMALL, tokens
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.mask import conforms, sparsity_of
from sqft_plugins.structure import find_linears


@pytest.mark.parametrize(("method", "pattern"), [("wanda", "0.5"), ("sparsegpt", "2:4")])
def test_no_family_loses_a_zero(folder_of, tmp_path, family, method, pattern) -> None:
    check_zeros(folder_of, tmp_path, family, method, pattern)


@pytest.mark.parametrize(
    ("method", "pattern"), [("wanda", "2:4"), ("sparsegpt", "0.5"), ("magnitude", "0.5"), ("magnitude", "2:4")]
)
def test_no_method_loses_a_zero_with_any_pattern(folder_of, tmp_path, method, pattern) -> None:
    check_zeros(folder_of, tmp_path, "llama", method, pattern)


def check_zeros(folder_of, tmp_path, family: str, method: str, pattern: str) -> None:
    """What a folder has after pruning and GPTQ: every zero of the mask, in the pattern."""
    prune_folder(folder_of(family), tmp_path / "pruned", method, pattern, **SMALL)
    report = quantize_folder(
        tmp_path / "pruned", tmp_path / "int4", "gptq", group_size=32, symmetric=pattern == "2:4", **SMALL
    )
    source, folder = ModelFolder(tmp_path / "pruned"), ModelFolder(tmp_path / "int4")
    transposed = family == "gpt2"
    assert len(folder.int4.modules) == report["modules"] > 0
    for module in folder.int4.modules:
        mask = folder.mask(module)
        weight = source.tensor(f"{module}.weight")
        assert torch.equal(mask, (weight.T if transposed else weight) != 0)
        assert not folder.weight(module)[~mask].any()
        if pattern == "2:4":
            assert conforms(mask, 2, 4) == 1.0
        else:
            assert (mask.sum(1) <= mask.shape[1] // 2).all()


def test_a_sharded_source_gives_the_same_tensors_in_the_same_shards(folder_of, tmp_path) -> None:
    path = folder_of("llama")
    load_model(path).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    for file in path.glob("token*"):
        (tmp_path / "sharded" / file.name).write_bytes(file.read_bytes())
    for name, source in (("one", path), ("many", tmp_path / "sharded")):
        prune_folder(source, tmp_path / f"{name}-50", **SMALL)
    one, many = ModelFolder(tmp_path / "one-50"), ModelFolder(tmp_path / "many-50")
    names = {name: file.name for name, file in ModelFolder(tmp_path / "sharded").files.items()}
    assert names == {name: file.name for name, file in many.files.items()}
    assert len(set(names.values())) > 2
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in names)
    assert one.stamp.mask_hash == many.stamp.mask_hash
    assert torch.equal(load_model(tmp_path / "many-50").lm_head.weight, load_model(path).lm_head.weight)


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_a_folder_of_the_bare_body_is_read_and_written_by_the_models_names(folder_of, tmp_path, family) -> None:
    """GPT-2 and Bloom are published without the prefix `transformer.`."""
    path = folder_of(family)
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in path.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    tensors = load_file(path / "model.safetensors")
    stripped = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items() if "lm_head" not in name}
    save_file(stripped, bare / "model.safetensors", metadata={"format": "pt"})
    for name, source in (("whole", path), ("body", bare)):
        prune_folder(source, tmp_path / name, sparsity=0.5, **SMALL)
    whole, body = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "body"))
    assert all(torch.equal(whole[name], body[name]) for name in body)
    assert all(name.startswith("transformer.") for name in body)
    assert torch.equal(load_model(tmp_path / "body")(tokens()).logits, load_model(tmp_path / "whole")(tokens()).logits)


def test_excluded_layers_and_layers_of_their_own_sparsity(folder_of, tmp_path) -> None:
    path = folder_of("llama")
    overrides = {"down_proj": "0.25", r"model\.layers\.1\..*up_proj": "1:4"}
    report = prune_folder(path, tmp_path / "out", exclude=["q_proj"], overrides=overrides, **SMALL)
    source, folder = ModelFolder(path), ModelFolder(tmp_path / "out")
    assert len(report["layers"]) == 12
    assert not any("q_proj" in module for module in folder.masks)
    for module in find_linears(load_model(path)):
        mask, weight = folder.mask(module), source.weight(module)
        if module.endswith("q_proj"):
            assert torch.equal(folder.weight(module), weight)
        elif module.endswith("down_proj"):
            assert ((~mask).sum(1) == 32).all()
        elif module == "model.layers.1.mlp.up_proj":
            assert (mask.unflatten(1, (-1, 4)).sum(-1) == 1).all()
        else:
            assert ((~mask).sum(1) == 32).all()
    quantize_folder(tmp_path / "out", tmp_path / "int4", exclude=["v_proj"])
    int4 = ModelFolder(tmp_path / "int4")
    assert int4.config["quantization_config"]["ignore"] == sorted(
        ["lm_head", *(f"model.layers.{block}.self_attn.v_proj" for block in range(2))]
    )
    assert int4.stamp.mask_hash == folder.stamp.mask_hash
    assert all(torch.equal(int4.masks[name], folder.masks[name]) for name in folder.masks)
    load_model(tmp_path / "int4")


def test_the_stamp_tells_the_sparsity_of_all_masks_though_pruned_in_two_goes(folder_of, tmp_path) -> None:
    prune_folder(folder_of("llama"), tmp_path / "one", "magnitude", 0.5, exclude=["mlp.down_proj"])
    rest = [".*self_attn.*", "gate_proj", "up_proj"]
    prune_folder(tmp_path / "one", tmp_path / "two", "magnitude", 0.75, exclude=rest)
    folder = ModelFolder(tmp_path / "two")
    masks = [folder.mask(module) for module in folder.masks]
    assert len(masks) == 14
    assert folder.stamp.sparsity == sparsity_of(*masks) != 0.75


PEAK = """
import sys
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
prune_folder(sys.argv[1], sys.argv[2], sparsity=0.5, sequences=4, length=32)
exclude = [".*(mlp|[kvo]_proj).*"]
print(quantize_folder(sys.argv[2], sys.argv[3], "gptq", exclude=exclude, sequences=4, length=32)["peak_memory_mib"])
"""


@pytest.mark.once
def test_peak_memory_does_not_grow_with_depth(folder_of, tmp_path) -> None:
    """A block has 4.2 M weights, 17 MB in float32; six more of them are 100 MB."""
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8}
    peaks = {}
    for layers in (2, 8):
        path = folder_of("llama", **wide, num_hidden_layers=layers)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, path, tmp_path / f"{layers}-pruned", tmp_path / f"{layers}-int4"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks[layers] = int(done.stdout)
    assert peaks[8] - peaks[2] < 40, peaks
