"""Folders into the compact form and back, bit for bit, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sqft_plugins.checkpoint import ModelFolder, Stamp, load_model, write_sidecar
from sqft_plugins.checkpoint.compact_convert import compact_folder, expand_folder
from sqft_plugins.cli import cli
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, MismatchError, OutputExistsError, SQFTError
from sqft_plugins.mask import mask_hash, pack_mask

MODULE = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def int4(tiny_llama, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compact")
    prune_folder(tiny_llama, folder / "pruned", method="magnitude")
    quantize_folder(folder / "pruned", folder / "int4")
    return folder / "int4"


@pytest.fixture(scope="module")
def compact(int4, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("compact") / "compact"
    compact_folder(int4, out)
    return out


@pytest.fixture
def copy(compact, tmp_path) -> Path:
    return shutil.copytree(compact, tmp_path / "copy")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def change_tensor(folder: Path, name: str, change) -> None:
    tensors = load_file(folder / "compact-model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "compact-model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (64, False), (-1, False)])
def test_every_file_comes_back_byte_for_byte(request, tiny_model, tmp_path, family, group_size, symmetric):
    if family == "gpt2":
        tiny_model("gpt2").save_pretrained(tmp_path / "float")
    else:
        shutil.copytree(request.getfixturevalue(f"tiny_{family}"), tmp_path / "float")
    prune_folder(tmp_path / "float", tmp_path / "pruned", method="magnitude", sparsity=0.5)
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", group_size=group_size, symmetric=symmetric)
    report = compact_folder(tmp_path / "int4", tmp_path / "compact")
    expand_folder(tmp_path / "compact", tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "int4")
    int4, compact = ModelFolder(tmp_path / "int4"), ModelFolder(tmp_path / "compact")
    assert (compact.grid, compact.stamp) == (int4.grid, int4.stamp)
    assert compact.int4.modules == int4.int4.modules
    assert mask_hash(compact.masks) == mask_hash(int4.masks)
    for module in int4.int4.modules:
        assert compact.quantized(module).equals(int4.quantized(module))
        assert torch.equal(compact.mask(module), int4.mask(module))
        assert compact.int4.shape(module) == int4.int4.shape(module)
        assert compact.int4.scale_spec(module) == int4.int4.scale_spec(module)
    assert report["bits_per_weight"] < report["bits_per_weight_before"]
    assert not (tmp_path / "compact" / "sqft" / "mask.safetensors").exists()


def test_the_bits_are_those_of_the_formula(int4, tmp_path):
    """1 for the mask, 4 for each kept weight, a scale of 32 bits (float32 here) for 32 weights, 64 for each row and for
    the last offset, 128 for the shape; in 50 % of an even row no half byte is lost."""
    report = compact_folder(int4, tmp_path / "out")
    shapes = [ModelFolder(int4).int4.shape(module) for module in ModelFolder(int4).int4.modules]
    bits = sum(rows * columns * (1 + 2 + 1) + 64 * (rows + 1) + 128 for rows, columns in shapes)
    assert report["sparsity"] == 0.5
    assert report["bits_per_weight"] == bits / report["weights"]
    assert report["bits_per_weight_before"] == pytest.approx(1 + 4 + 1, abs=0.05)  # and weight_shape


def test_shards_unmasked_layers_and_masked_float_layers(tiny_llama, tmp_path):
    """A layer that was never pruned stays packed; one that was pruned but not quantized keeps its mask."""
    load_model(tiny_llama).save_pretrained(tmp_path / "float", max_shard_size="100KB")
    prune_folder(tmp_path / "float", tmp_path / "pruned", method="magnitude")
    quantize_folder(tmp_path / "pruned", tmp_path / "int4")
    folder = ModelFolder(tmp_path / "int4")
    # clones: the tensors are views of the very file that is written anew below
    masks = {module: packed.clone() for module, packed in folder.masks.items() if module != MODULE}
    masks["lm_head"] = pack_mask(torch.rand(folder.spec("lm_head.weight").shape) < 0.5)
    stamp = folder.stamp.model_copy(update={"mask_hash": mask_hash(masks)})  # type: ignore[union-attr]
    write_sidecar(folder.path, stamp, masks)
    report = compact_folder(folder.path, tmp_path / "compact")
    assert report["modules"] == len(folder.int4.modules) - 1
    expand_folder(tmp_path / "compact", tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(folder.path)
    compact = ModelFolder(tmp_path / "compact")
    assert len(set(compact.files.values())) == len(set(folder.files.values())) > 2
    assert torch.equal(compact.weight(MODULE), folder.weight(MODULE))
    assert compact.mask(MODULE) is None
    assert torch.equal(compact.masks["lm_head"], masks["lm_head"])
    assert mask_hash(compact.masks) == stamp.mask_hash
    ours, stock = load_model(compact.path).state_dict(), load_model(folder.path).state_dict()
    assert all(torch.equal(ours[name], stock[name]) for name in stock)


def test_the_model_is_the_one_that_transformers_makes_of_the_int4_folder(int4, compact):
    ours, theirs = load_model(compact).state_dict(), load_model(int4).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
        assert ours[name].dtype == tensor.dtype, name


def test_stock_transformers_refuses_instead_of_loading_random_weights(compact):
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(compact)


def test_the_command(int4, tmp_path):
    run = CliRunner().invoke(cli, ["compact", str(int4), "--out", str(tmp_path / "c"), "--json"])
    assert json.loads(run.stdout)["modules"] == 14
    run = CliRunner().invoke(cli, ["compact", "--expand", str(tmp_path / "c"), "--out", str(tmp_path / "e")])
    assert "14 layers restored" in run.stdout
    assert files_of(tmp_path / "e") == files_of(int4)


def test_what_has_no_compact_form(int4, compact, tiny_llama, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SQFTError, match="is float, not pack-quantized INT4: make it one with `sqft quantize`"):
        compact_folder(tiny_llama, out)
    with pytest.raises(SQFTError, match="is the compact form, not pack-quantized INT4"):
        compact_folder(compact, out)
    with pytest.raises(SQFTError, match="is not in the compact form"):
        expand_folder(int4, out)
    with pytest.raises(OutputExistsError, match="exists"):
        compact_folder(int4, compact)
    bare = shutil.copytree(int4, tmp_path / "bare")
    shutil.rmtree(bare / "sqft")
    with pytest.raises(SQFTError, match="has no masks of INT4 weights: prune it first"):
        compact_folder(bare, out)
    assert not out.exists()


def test_a_mask_that_prunes_what_is_not_zero_is_refused(int4, tmp_path):
    copy = shutil.copytree(int4, tmp_path / "copy")
    folder = ModelFolder(copy)
    masks = {module: packed.clone() for module, packed in folder.masks.items()}
    masks[MODULE] = torch.zeros_like(masks[MODULE])
    save_file(masks, copy / "sqft" / "mask.safetensors")
    with pytest.raises(MismatchError, match="has not the mask_hash of the stamp"):
        compact_folder(copy, tmp_path / "out")
    write_sidecar(copy, Stamp(pipeline=[], sparsity=0.0, mask_hash=mask_hash(masks)), masks)
    with pytest.raises(MismatchError, match=rf"weights of {MODULE} are nonzero although its mask prunes them"):
        compact_folder(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_compact_folders_are_named(copy, tmp_path):
    where = f"{MODULE}.weight"
    change_tensor(copy, f"{where}.bitmask", lambda bits: bits ^ 1)
    for attempt in (lambda: ModelFolder(copy).quantized(MODULE), lambda: load_model(copy)):
        with pytest.raises(CheckpointError, match=rf"compact-model.safetensors: {where}: row_offsets are not those of"):
            attempt()
    change_tensor(copy, f"{where}.bitmask", lambda bits: bits ^ 1)
    change_tensor(copy, f"{where}.values", lambda values: values[:-1].clone())
    with pytest.raises(CheckpointError, match="values are more or fewer than the bitmask keeps"):
        expand_folder(copy, tmp_path / "out")
    change_tensor(copy, f"{where}.scales", lambda scales: scales[:, :1].clone())
    with pytest.raises(CheckpointError, match=rf"{where}\.scales of .* is \(128, 1\), expected \(128, 2\)"):
        ModelFolder(copy).quantized(MODULE)
    assert not (tmp_path / "out").exists()


def test_a_compact_folder_whose_originals_are_gone_is_not_expanded(copy, tmp_path):
    header = copy / "sqft" / "pack-quantized" / "model.safetensors.header"
    data = header.read_bytes()
    header.write_bytes(data[:-20])
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.header is no safetensors header"):
        expand_folder(copy, tmp_path / "out")
    header.write_bytes(data.replace(b'"I32"', b'"F32"'))
    with pytest.raises(CheckpointError, match=r"is not in model\.safetensors\.header, or another"):
        expand_folder(copy, tmp_path / "out")
    (copy / "sqft" / "pack-quantized" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks headers or config\.json"):
        expand_folder(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has compact version 2, this release reads up to 1: upgrade sqft-plugins"),
        ({"version": None}, "has compact version None"),
        ({"group_size": "half"}, "the compact form has no grid"),
        ({"format": "other"}, "is quantized as sqft/other: this release reads"),
    ],
)
def test_configs_that_are_not_read(copy, changes, message):
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] |= changes
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        _ = ModelFolder(copy).grid
