"""INT4 of tiny models."""

from __future__ import annotations

import json

import pytest
import torch

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder, quantize_weight
from sqft_plugins.compress.round_to_nearest import RoundToNearest
from sqft_plugins.errors import GridError, MismatchError, SQFTError
from sqft_plugins.grid import round_to_nearest
from sqft_plugins.structure import structure_of_folder


@pytest.fixture(scope="module")
def pruned(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruned") / "out"
    report = prune_folder(tiny_llama, out, sparsity=0.5, sequences=4, length=32)
    return out, report


@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (64, False), (-1, True), (-1, False)])
def test_quantize_folder_keeps_every_zero(pruned, tmp_path, group_size, symmetric):
    out = tmp_path / "out"
    report = quantize_folder(pruned[0], out, group_size=group_size, symmetric=symmetric)
    source, folder = ModelFolder(pruned[0]), ModelFolder(out)
    assert folder.grid == GridStamp(group_size=group_size, symmetric=symmetric)
    assert folder.stamp is not None
    assert folder.stamp.pipeline == ["wanda", "round-to-nearest"]
    assert folder.stamp.mask_hash == source.stamp.mask_hash  # type: ignore[union-attr]
    assert folder.int4.modules == sorted(structure_of_folder(pruned[0]).shapes)
    for module in folder.int4.modules:
        mask = source.mask(module)
        expected = round_to_nearest(source.weight(module), mask, group_size, symmetric)
        stored = folder.quantized(module)
        assert stored.equals(expected)
        assert not bool((folder.weight(module)[~mask] != 0).any())
    assert report["sparsity"] == 0.5
    assert report["zeros"] >= 0.5
    assert report["bytes"] == folder.weight_bytes
    assert all(0 < row["error"] < 0.3 for row in report["layers"])
    json.dumps(report)


def test_a_dense_folder_keeps_its_nonzero_pattern(tiny_llama, tmp_path):
    quantize_folder(tiny_llama, tmp_path / "out")
    folder = ModelFolder(tmp_path / "out")
    assert folder.stamp is not None
    assert folder.stamp.pipeline == ["round-to-nearest"]
    assert folder.stamp.sparsity == 0.0
    assert all(bool(folder.mask(module).all()) for module in folder.int4.modules)


def test_the_scale_hash_does_not_depend_on_the_shards(pruned, tmp_path):
    load_model(pruned[0]).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    (tmp_path / "sharded" / "sqft").symlink_to(pruned[0] / "sqft")
    stamps = []
    for name, source in (("one", pruned[0]), ("many", tmp_path / "sharded")):
        quantize_folder(source, tmp_path / name)
        stamps.append(ModelFolder(tmp_path / name).stamp)
    assert stamps[0] == stamps[1]
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2


def edited(source, target, module, change):
    """A copy of a model folder with one weight changed."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors[f"{module}.weight"])
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_quantize_folder_refuses_what_cannot_work(tiny_llama, pruned, tmp_path):
    module = "model.layers.1.mlp.up_proj"
    with pytest.raises(GridError, match=r"group_size=128 does not divide in=64 of model\.layers\.0\.self_attn\.q_proj"):
        quantize_folder(pruned[0], tmp_path / "out", group_size=128)
    with pytest.raises(SQFTError, match="--method 'gptk' is unknown"):
        quantize_folder(pruned[0], tmp_path / "out", method="gptk")
    broken = edited(tiny_llama, tmp_path / "nan", module, lambda w: w[0, :2].fill_(float("nan")))
    with pytest.raises(GridError, match=rf"tensor {module}\.weight holds NaN"):
        quantize_folder(broken, tmp_path / "out")
    huge = edited(tiny_llama, tmp_path / "huge", module, lambda w: w[0, :2].fill_(1e7))
    with pytest.raises(GridError, match=rf"tensor {module}\.weight: scale=.* outside the exact range"):
        quantize_folder(huge, tmp_path / "out")
    merged = edited(pruned[0], tmp_path / "merged", module, lambda w: w.add_(0.01))
    with pytest.raises(MismatchError, match=rf"4096 weights of {module} are nonzero although its mask prunes them"):
        quantize_folder(merged, tmp_path / "out")
    quantize_folder(pruned[0], tmp_path / "int4")
    with pytest.raises(SQFTError, match="is INT4 already"):
        quantize_folder(tmp_path / "int4", tmp_path / "out")
    with pytest.raises(SQFTError, match="is INT4 already"):
        prune_folder(tmp_path / "int4", tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".", "out"))]


def test_a_quantizer_that_breaks_the_mask_is_named():
    class Reviver(RoundToNearest):
        name = "reviver"

        def quantize(self, weight, mask, statistic, grid):
            return super().quantize(weight, torch.ones_like(mask), statistic, grid)

    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(SQFTError, match="'reviver' turned pruned weights of m back on"):
        quantize_weight("m", weight, torch.zeros(4, 32, dtype=torch.bool), Reviver(), GridStamp())
