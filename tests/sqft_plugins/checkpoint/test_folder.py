"""Reading a model folder, and what is said about one that lacks something."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sqft_plugins.checkpoint import ModelFolder, load_model, load_tokenizer
from sqft_plugins.checkpoint.tensors import read_header as header
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, SQFTError


@pytest.fixture
def copy(pruned, tmp_path) -> Path:
    return shutil.copytree(pruned, tmp_path / "copy")


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_nbytes_counts_what_is_on_disk(int4):
    folder = ModelFolder(int4)
    tensors = load_file(folder.path / "model.safetensors")
    for name, tensor in tensors.items():
        assert folder.spec(name).nbytes == tensor.numel() * tensor.element_size()
        assert folder.spec(name).shape == tuple(tensor.shape)
    assert set(folder.files) == set(tensors)


def test_a_header_is_read_once_for_all_its_tensors(pruned, monkeypatch):
    """Each names every tensor of its file: of a big model, reading it for each takes longer than all the rest."""
    read: list[Path] = []
    monkeypatch.setattr("sqft_plugins.checkpoint.tensors.read_header", lambda file: read.append(file) or header(file))
    folder = ModelFolder(pruned)
    for _ in range(2):
        assert all(folder.spec(name).nbytes for name in folder.files)
    assert read == [pruned / "model.safetensors"]


def test_of_a_single_file_and_an_index_the_file_is_read_as_transformers_does(tiny_llama, tiny_model, tmp_path):
    """save_pretrained leaves an old index behind when it writes one file, and an old file when it writes shards."""
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    other = tiny_model("llama")
    other.load_state_dict({name: tensor + 1 for name, tensor in other.state_dict().items()})
    other.save_pretrained(folder, max_shard_size="100KB")
    assert {"model.safetensors", "model.safetensors.index.json"} <= {file.name for file in folder.iterdir()}
    stock = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    found = ModelFolder(folder)
    assert all(torch.equal(found.tensor(name), stock[name]) for name in found.files)
    assert not torch.equal(stock["model.norm.weight"], other.state_dict()["model.norm.weight"])


def test_a_folder_that_is_not_there(tmp_path):
    for path in (tmp_path / "none", "no/such/folder", "./x"):
        for load in (ModelFolder, load_model, load_tokenizer):
            with pytest.raises(CheckpointError, match="is not a folder"):
                load(path)
    for load in (load_model, load_tokenizer):
        with pytest.raises(CheckpointError, match="neither a folder here nor a model on the hub"):
            load("nobody/no-such-model")


def test_missing_and_broken_files(copy):
    (copy / "config.json").rename(copy / "kept")
    with pytest.raises(CheckpointError, match=r"has no config\.json: give a model folder"):
        ModelFolder(copy)
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="it is an adapter, give its base model"):
        ModelFolder(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        ModelFolder(copy)
    (copy / "kept").rename(copy / "config.json")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        load_model(copy)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_file_that_is_cut_off(tiny_llama, tmp_path, sharded):
    copy = tmp_path / "copy"
    load_model(tiny_llama).save_pretrained(copy, max_shard_size="100KB" if sharded else "1GB")
    file = max(copy.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    for attempt in (
        lambda: ModelFolder(copy).files,
        lambda: load_model(copy),
        lambda: quantize_folder(copy, tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError, match=rf"{file.name} is damaged or cut off"):
            attempt()
    file.unlink()
    with pytest.raises(
        CheckpointError, match="missing: copy the model again" if sharded else r"has no model\.safetensors"
    ):
        load_model(copy)
    assert not (tmp_path / "out").exists()


def test_a_broken_index(tiny_llama, tmp_path):
    load_model(tiny_llama).save_pretrained(tmp_path / "m", max_shard_size="100KB")
    (tmp_path / "m" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no weight index"):
        _ = ModelFolder(tmp_path / "m").files


def test_masks_that_are_missing_damaged_or_anothers(copy, tmp_path):
    module = "model.layers.0.mlp.up_proj"
    file = copy / "sqft" / "mask.safetensors"
    masks = load_file(file)
    save_file({**masks, module: masks[module][:3].contiguous()}, file)
    with pytest.raises(CheckpointError, match=rf"mask of {module} is \(3, 8\) but its weight \(128, 64\)"):
        ModelFolder(copy).mask(module)
    file.write_bytes(b"\x00" * 10)
    with pytest.raises(CheckpointError, match="is damaged or cut off"):
        ModelFolder(copy).mask(module)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"mask\.safetensors is missing although the model is stamped"):
        quantize_folder(copy, tmp_path / "out")


def test_other_quantized_formats_are_refused(int4, tmp_path):
    copy = shutil.copytree(int4, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    quantization = config["quantization_config"]

    def with_weights(**changes):
        group = quantization["config_groups"]["group_0"]
        return {**quantization, "config_groups": {"group_0": {**group, "weights": {**group["weights"], **changes}}}}

    cases = [
        ({"quant_method": "hqq"}, "is quantized as hqq/None: this release reads compressed-tensors/pack-quan"),
        ({**quantization, "format": "float-quantized"}, "is float-quantized of 4 bits, type int"),
        (with_weights(num_bits=7), "num_bits=7: use 2, 3, 4, 5, 6, 8 bits"),
        (with_weights(type="float"), "not of integers"),
        (with_weights(actorder="group"), r"has no tensor model\.layers\.0\.mlp\.down_proj\.weight_g_idx"),
    ]
    for changed, message in cases:
        change_json(copy / "config.json", quantization_config=changed)
        folder = ModelFolder(copy)
        with pytest.raises(SQFTError, match=message):
            _ = folder.grid, folder.quantized("model.layers.0.mlp.down_proj")
    change_json(copy / "config.json", quantization_config=None)
    with pytest.raises(CheckpointError, match="is packed: copy the model again"):
        ModelFolder(copy).weight("model.layers.0.mlp.up_proj")


def test_a_tensor_that_is_not_there_is_named(pruned):
    with pytest.raises(CheckpointError, match=r"has no tensor model\.layers\.9\.weight"):
        ModelFolder(pruned).weight("model.layers.9")
    assert ModelFolder(pruned).mask("model.embed_tokens") is None
