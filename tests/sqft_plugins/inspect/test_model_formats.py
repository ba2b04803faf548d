"""N:M conformance and the agreement of masks, weights and stamps, in folders of every family."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.compact_convert import compact_folder
from sqft_plugins.cli import main
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError
from sqft_plugins.inspect import inspect_path
from sqft_plugins.inspect.model import float_type
from sqft_plugins.inspect.report import conforming
from sqft_plugins.mask import Pattern
from sqft_plugins.pattern import asked_patterns

sys.path.insert(0, str(Path(__file__).parents[1]))  # importlib mode keeps test folders off the path

from helpers_foreign import write_foreign
from helpers_gptq import write_gptq


@pytest.fixture
def pruned(family, tiny_model, tmp_path):
    """A folder of each family, pruned 2:4."""
    tiny_model(family).save_pretrained(tmp_path / "dense")
    prune_folder(tmp_path / "dense", tmp_path / "pruned", method="magnitude", sparsity="2:4")
    return tmp_path / "pruned"


def test_every_family_conforms_along_in_and_agrees_with_its_mask(pruned, family, tmp_path):
    dense = {row["name"]: row for row in inspect_path(tmp_path / "dense")["layers"]}
    report = inspect_path(pruned)
    for row in report["layers"]:
        assert conforming(row["patterns"]) == "2:4", row["name"]
        assert (row["zeros"], row["pruned"], row["violations"], row["kept_zero"]) == (0.5, 0.5, 0, 0)
        assert row["shape"] == dense[row["name"]]["shape"]
    assert report["total"]["patterns"]["2:4"] == report["total"]["patterns"]["4:8"] == 1
    assert report["total"]["patterns"]["1:4"] < 1
    assert report["mask_is_the_stamps"] is True
    shapes = {row["name"].rpartition(".")[2]: row["shape"] for row in report["layers"]}
    if family == "gpt2":
        assert shapes["c_attn"] == [192, 64]  # [out, in], although a Conv1D is stored [in, out]


def test_int4_of_every_family_says_what_rounding_made_zero(pruned, tmp_path):
    quantize_folder(pruned, tmp_path / "int4")
    report = inspect_path(tmp_path / "int4")
    folder = ModelFolder(tmp_path / "int4")
    for row in report["layers"]:
        mask, codes = folder.mask(row["name"]), folder.quantized(row["name"]).codes
        kept_zero = sum(
            bool(kept) and code == 8
            for kept, code in zip(mask.flatten().tolist(), codes.flatten().tolist(), strict=True)
        )
        assert (row["violations"], row["kept_zero"]) == (0, kept_zero)
        assert row["dtype"] == "int4"
    assert report["total"]["kept_zero"] > 0
    assert report["total"]["patterns"]["2:4"] == 1


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_compact_form_shows_what_its_int4_folder_shows(tiny_llama, tmp_path, symmetric):
    prune_folder(tiny_llama, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", symmetric=symmetric)
    compact_folder(tmp_path / "int4", tmp_path / "compact")
    wide, compact = inspect_path(tmp_path / "int4"), inspect_path(tmp_path / "compact")
    for row, other in zip(wide["layers"], compact["layers"], strict=True):
        assert other.pop("bits_per_weight") != row.pop("bits_per_weight")
        assert other == row
    assert compact["grid"] == wide["grid"]
    assert compact["mask_is_the_stamps"] is wide["mask_is_the_stamps"] is True


def test_an_autogptq_folder_has_codes_and_no_mask(tiny_llama, tmp_path):
    written = write_gptq(tiny_llama, tmp_path / "gptq", group_size=32, symmetric=False)
    report = inspect_path(tmp_path / "gptq")
    assert (report["stamp"], report["mask_is_the_stamps"], report["total"]["pruned"]) == (None, None, None)
    assert report["grid"] == {"bits": 4, "group_size": 32, "symmetric": False}
    stored = load_file(tmp_path / "gptq" / "model.safetensors")
    for row in report["layers"]:
        weight = written[row["name"]]
        zero = weight.zero_point.repeat_interleave(32, 1)  # [out, in]
        assert row["zeros"] == float((weight.codes == zero).double().mean())
        assert row["shape"] == list(weight.codes.shape)
        assert row["codes"] == [int((weight.codes == code).sum()) for code in range(16)]
        size = sum(t.numel() * t.element_size() for name, t in stored.items() if name.startswith(f"{row['name']}."))
        assert row["bits_per_weight"] == 8 * size / weight.codes.numel()
        assert row["gguf_exact"]  # scales of 11 bits, which fp16 holds


def test_the_grid_of_another_program_has_its_own_name(tiny_llama, tmp_path, capsys):
    write_foreign(tiny_llama, tmp_path / "fp8", "fp8-channel")
    with pytest.raises(SystemExit) as done:
        main(["inspect", str(tmp_path / "fp8")])
    assert not done.value.code
    assert "FP8_E4M3, per channel, symmetric" in capsys.readouterr().out


def test_a_mask_that_is_not_the_stamps_is_told(tiny_llama, tmp_path):
    prune_folder(tiny_llama, tmp_path / "pruned", method="magnitude", sparsity=0.5)
    file = tmp_path / "pruned" / "sqft" / "mask.safetensors"
    masks = load_file(file)
    module = "model.layers.0.mlp.up_proj"
    masks[module][0, 0] ^= 0b11
    save_file(masks, file)
    report = inspect_path(tmp_path / "pruned")
    assert report["mask_is_the_stamps"] is False
    row = next(row for row in report["layers"] if row["name"] == module)
    assert row["violations"] + row["kept_zero"] == 2
    masks[module] = masks[module][:3]
    save_file(masks, file)
    with pytest.raises(CheckpointError, match=rf"mask of {module} is \(3, 8\)"):
        inspect_path(tmp_path / "pruned")


def test_a_folder_of_the_bare_body_is_read(tiny_model, tmp_path):
    """GPT-2 is published without the prefix `transformer.` before its names."""
    tiny_model("gpt2").save_pretrained(tmp_path / "whole")
    bare = shutil.copytree(tmp_path / "whole", tmp_path / "bare")
    tensors = load_file(bare / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, bare / "model.safetensors"
    )
    whole, told = inspect_path(tmp_path / "whole"), inspect_path(bare)
    assert told["layers"] == whole["layers"]
    assert told["total"]["bits_per_weight"] == 32


def test_a_truncated_shard_is_named(tiny_llama, tmp_path):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    whole = load_file(copy / "model.safetensors")
    names = sorted(whole)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: whole[name] for name in chosen}, copy / file)
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert inspect_path(copy)["layers"] == inspect_path(tiny_llama)["layers"]
    (copy / "model-2.safetensors").write_bytes((copy / "model-2.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is damaged or cut off"):
        inspect_path(copy)


def test_a_file_that_nobody_reads_says_what_is_read(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"notes\.txt is a file that nothing here reads.*gguf"):
        inspect_path(tmp_path / "notes.txt")


def test_float_type_is_the_narrowest_exact_one():
    assert float_type(torch.tensor([[0.5]])) == "F16"
    assert float_type(torch.tensor([[1e30]]).bfloat16()) == "BF16"
    assert float_type(torch.tensor([[2.0**-24 * 3]])) == "F16"
    assert float_type(torch.tensor([[0.1]])) == "F32"
    assert Pattern.parse("2:4") in asked_patterns("2:4")
    assert len(asked_patterns("2:4")) == 3
