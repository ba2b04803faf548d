"""Folders of every width: written, read, by transformers too, and as compressed-tensors packed them before 0.20."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.checkpoint.compact_convert import compact_folder
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, GridError
from sqft_plugins.grid import UNIFORM, round_to_nearest
from sqft_plugins.kernels.load import load_accelerated

RELEASE = tuple(map(int, version("compressed-tensors").split(".")[:2]))
IS_DENSE = RELEASE >= (0, 20)
MODULE = "model.layers.0.mlp.down_proj"
each_width = pytest.mark.parametrize("bits", UNIFORM)


@pytest.fixture(scope="module")
def folders(pruned, tmp_path_factory):
    """(bits, symmetric) → a folder of that width."""
    root, made = tmp_path_factory.mktemp("widths"), {}

    def make(bits: int, symmetric: bool):
        path = root / f"int{bits}-{symmetric}"
        if path not in made:
            made[path] = quantize_folder(pruned, path, bits=bits, symmetric=symmetric)
        return path

    return make


def padded(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """As compressed-tensors before 0.20: whole codes in each word."""
    each = 32 // bits
    wide = torch.nn.functional.pad(codes.long(), (0, -codes.shape[1] % each)).unflatten(1, (-1, each))
    words = (wide << (bits * torch.arange(each))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@each_width
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_written_is_read_with_its_zeros(pruned, folders, bits, symmetric) -> None:
    folder, source = ModelFolder(folders(bits, symmetric)), ModelFolder(pruned)
    assert folder.grid == GridStamp(bits=bits, group_size=32, symmetric=symmetric)
    assert folder.stamp is not None
    assert folder.stamp.grid == folder.grid
    for module in folder.int4.modules:
        mask = source.mask(module)
        expected = round_to_nearest(source.weight(module), mask, 32, symmetric, UNIFORM[bits])
        assert folder.quantized(module).equals(expected)
        assert folder.quantized(module).lost_zeros(mask) == 0
        assert folder.spec(f"{module}.weight_packed").shape[1] == -(-mask.shape[1] * bits // 32)


@each_width
def test_transformers_reads_the_same_weights(folders, bits) -> None:
    if not IS_DENSE and 32 % bits:
        pytest.skip("compressed-tensors before 0.20 reads padded words of 3, 5 and 6 bits only")
    if RELEASE < (0, 17) and bits not in (4, 8):
        pytest.skip("compressed-tensors before 0.17 reads 4 and 8 bits only")
    path = folders(bits, False)
    ours = load_model(path, dtype=torch.float32)
    settings = CompressedTensorsConfig(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, quantization_config=settings)
    assert torch.equal(theirs.get_submodule(MODULE).weight, ours.get_submodule(MODULE).weight)
    assert torch.equal(ours.get_submodule(MODULE).weight, ModelFolder(path).weight(MODULE))


@pytest.mark.parametrize("bits", [3, 5, 6])
@pytest.mark.parametrize("symmetric", [True, False])
def test_padded_words_are_recognised(folders, tmp_path, bits, symmetric) -> None:
    folder = ModelFolder(folders(bits, symmetric))
    copy = shutil.copytree(folder.path, tmp_path / "padded")
    tensors = load_file(copy / "model.safetensors")
    for module in folder.int4.modules:
        weight = folder.quantized(module)
        tensors[f"{module}.weight_packed"] = padded(weight.codes, bits)
        if not symmetric:
            tensors[f"{module}.weight_zero_point"] = padded(weight.zero_point.t(), bits).t().contiguous()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    again = ModelFolder(copy)
    assert again.spec(f"{MODULE}.weight_packed").shape != folder.spec(f"{MODULE}.weight_packed").shape
    for module in folder.int4.modules:
        assert again.quantized(module).equals(folder.quantized(module))


def test_words_of_another_length_are_refused(folders, tmp_path) -> None:
    copy = shutil.copytree(folders(3, True), tmp_path / "short")
    tensors = load_file(copy / "model.safetensors")
    tensors[f"{MODULE}.weight_packed"] = tensors[f"{MODULE}.weight_packed"][:, :-1].contiguous()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"down_proj\.weight_packed of .* expected \("):
        ModelFolder(copy).quantized(MODULE)


@pytest.mark.parametrize("bits", [1, 7, 16, "4"])
def test_a_width_that_is_no_grid_is_refused_by_name(folders, tmp_path, bits) -> None:
    copy = shutil.copytree(folders(3, True), tmp_path / "odd")
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = bits
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"num_bits={bits!r}: use 2, 3, 4, 5, 6, 8 bits"):
        _ = ModelFolder(copy).grid


@pytest.mark.parametrize("bits", [3, 8])
def test_what_runs_int4_only_refuses_another_width_by_name(folders, tmp_path, bits) -> None:
    path = folders(bits, True)
    with pytest.raises(GridError, match=rf"INT{bits}, and the sparse kernel has INT4 only: quantize with bits=4"):
        load_accelerated(path)
    with pytest.raises(GridError, match=rf"INT{bits}, and the compact form has INT4 only"):
        compact_folder(path, tmp_path / "compact")
    assert not (tmp_path / "compact").exists()
