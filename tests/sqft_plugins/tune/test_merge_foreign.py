"""Quantized folders of other programs, which have no masks: tuned as dense ones through their own grids, and merged
into them. Codes alone change."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers_foreign import FOREIGN, write_foreign
from helpers_gptq import write_gptq
from safetensors.torch import load_file, save_file

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, MismatchError, SQFTError
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.train import train_adapter

EXAMPLES = [Example(f"Question: what follows {n}?\nAnswer:", f" {n + 1}") for n in range(8)]
TRAINING = TrainSettings.make({"steps": 2, "batch_size": 4, "learning_rate": 2e-2})


def train(base, out, **changes):
    settings = {"rank": 4, "alpha": 16, "quantization_aware": True, "sparse": False}
    settings["target_modules"] = ["k_proj", "down_proj"]
    return train_adapter(base, out, EXAMPLES, AdapterSettings.make({**settings, **changes}), TRAINING)


def another_programs(dense, out, **grid):
    """A folder as llm-compressor leaves it: pack-quantized, without our masks and stamp."""
    quantize_folder(dense, out, **grid)
    shutil.rmtree(out / "sqft")
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]["sqft"]
    (out / "config.json").write_text(json.dumps(config))
    return out


def write(name, dense, out):
    if name in FOREIGN:
        write_foreign(dense, out, name)
    elif name == "gptq":
        write_gptq(dense, out, 32, False, 1)
    else:
        bits = int(name[3])
        another_programs(dense, out, bits=bits, symmetric=bits == 4)
    return out


SOON = ["int4", "awq", "gptq-order", "fp8-odd-blocks", "nvfp4", "nf4-double"]  # one of each kind of grid
LATER = [name for name in ("int3", "gptq", *FOREIGN) if name not in SOON]


@pytest.fixture(params=[*SOON, *(pytest.param(name, marks=pytest.mark.slow) for name in LATER)])
def each_foreign(request, tiny_llama, tmp_path):
    return write(request.param, tiny_llama, tmp_path / "foreign")


@pytest.fixture
def foreign(tiny_llama, tmp_path):
    return write("awq", tiny_llama, tmp_path / "foreign")


def codes_cut_out(folder, modules):
    """The bytes of a weight file with zeros where the codes of `modules` are."""
    (file,) = folder.path.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for module in modules:
        start, end = header[folder.int4.codes_name(module)]["data_offsets"]
        data[8 + length + start : 8 + length + end] = bytes(end - start)
    return bytes(data)


def test_a_merge_changes_codes_alone_and_computes_what_was_trained(each_foreign, tmp_path) -> None:
    train(each_foreign, tmp_path / "adapter")
    report = merge_folder(each_foreign, tmp_path / "adapter", tmp_path / "merged", "max")
    assert report["max_logit_difference"] < 1e-5
    assert report["codes_changed"] > 0.01
    base, merged = ModelFolder(each_foreign), ModelFolder(tmp_path / "merged")
    assert merged.grid == base.grid
    assert merged.stamp is None
    assert not (tmp_path / "merged" / "sqft").exists()

    adapted = AdapterFolder(tmp_path / "adapter").linears
    assert codes_cut_out(base, adapted) == codes_cut_out(merged, adapted)
    for module in adapted:
        assert merged.quantized(module).grid.equals(base.quantized(module).grid)
    for file in base.path.iterdir():
        if file.suffix != ".safetensors" and file.name != "README.md":
            assert (merged.path / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_scales_that_we_do_not_make_are_taken_as_they_are(rounding, tiny_llama, tmp_path) -> None:
    base, module = write("int8", tiny_llama, tmp_path / "base"), "model.layers.0.self_attn.k_proj"
    tensors = load_file(base / "model.safetensors")
    scale = tensors[f"{module}.weight_scale"]
    scale[0], scale[1], scale[2] = 0.0, 1e-7, -scale[2]
    save_file(tensors, base / "model.safetensors")
    train(base, tmp_path / "adapter", rounding=rounding)
    report = merge_folder(base, tmp_path / "adapter", tmp_path / "merged", "max")
    assert report["max_logit_difference"] < 1e-5
    before, after = (ModelFolder(folder).quantized(module) for folder in (base, tmp_path / "merged"))
    assert torch.equal(after.codes[0], before.codes[0])  # each code is 0
    assert not torch.equal(after.codes[2], before.codes[2])


def test_it_settles_unless_asked_otherwise(foreign, tmp_path) -> None:
    train(foreign, tmp_path / "settled")
    train(foreign, tmp_path / "rounded", rounding="nearest")
    assert [AdapterFolder(tmp_path / name).settles for name in ("settled", "rounded")] == [True, False]
    assert json.loads((tmp_path / "settled" / "training.json").read_text())["adapter"]["rounding"] == "compensated"


def test_a_second_merge_is_refused(foreign, tmp_path) -> None:
    train(foreign, tmp_path / "adapter")
    merge_folder(foreign, tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(MismatchError, match="was trained over other weights"):
        merge_folder(tmp_path / "merged", tmp_path / "adapter", tmp_path / "twice")


def test_a_masked_adapter_over_it_is_refused_and_the_way_named(foreign, tmp_path) -> None:
    with pytest.raises(SQFTError, match=r"has no mask .* where none was, train with sparse=False \(--dense\)"):
        train(foreign, tmp_path / "adapter", sparse=True)


def test_a_dense_adapter_over_a_pruned_folder_is_refused(int4, tmp_path) -> None:
    with pytest.raises(SQFTError, match=r"sparse=False over .*, whose mask prunes \d+ weights of .* leave sparse=True"):
        train(int4, tmp_path / "adapter")


def test_padded_words_are_trained_through_and_not_merged_into(tiny_llama, tmp_path) -> None:

    folder = ModelFolder(another_programs(tiny_llama, tmp_path / "foreign", bits=3))
    tensors = load_file(folder.path / "model.safetensors")
    for module in folder.int4.modules:
        codes = torch.nn.functional.pad(folder.quantized(module).codes.long(), (0, -folder.int4.shape(module)[1] % 10))
        words = (codes.unflatten(1, (-1, 10)) << (3 * torch.arange(10))).sum(-1)
        tensors[f"{module}.weight_packed"] = words.to(torch.int32)
    save_file(tensors, folder.path / "model.safetensors", metadata={"format": "pt"})
    train(folder.path, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"is packed with padding, .*: quantize the model again"):
        merge_folder(folder.path, tmp_path / "adapter", tmp_path / "merged")
