"""Folders as stock transformers reads them, and what is said about damaged ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from sqft_plugins.checkpoint import ModelFolder, Stamp, load_model, load_tokenizer, write_sidecar
from sqft_plugins.checkpoint.int4 import copy_side_files
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.mask import mask_hash, pack_mask


@pytest.fixture
def copy(pruned, tmp_path) -> Path:
    return shutil.copytree(pruned, tmp_path / "copy")


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (64, False), (-1, True), (-1, False)])
def test_stock_transformers_reads_the_same_weights(request, tmp_path, family, group_size, symmetric):
    """Exact in float32; in bfloat16 each weight is the float32 one rounded once. Scales have the source's dtype."""
    source = request.getfixturevalue(f"tiny_{family}")
    quantize_folder(source, tmp_path / "out", group_size=group_size, symmetric=symmetric)
    folder = ModelFolder(tmp_path / "out")
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(
            folder.path, quantization_config=CompressedTensorsConfig(dequantize=True), dtype=dtype
        )
        parameters = dict(model.named_parameters())
        for module in folder.int4.modules:
            assert torch.equal(parameters[f"{module}.weight"], folder.weight(module).to(dtype)), (module, dtype)
        for name in set(folder.files) & set(parameters):
            if name.endswith("zero_point"):  # unpacked and signed in memory
                continue
            assert torch.equal(parameters[name], folder.tensor(name).to(dtype)), name


def test_stock_transformers_generates_without_our_arguments(int4):
    tokenizer, batch = load_tokenizer(int4), torch.tensor([[2, 40, 50, 60]])
    packed = AutoModelForCausalLM.from_pretrained(int4, dtype=torch.float32)
    ours = load_model(int4, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(packed(batch).logits, ours(batch).logits, rtol=0, atol=1e-5)
    generated = ours.generate(batch, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] <= 8
    assert isinstance(tokenizer.decode(generated[0]), str)


def test_a_sharded_source_stays_sharded(tiny_llama, tmp_path):
    load_model(tiny_llama).save_pretrained(tmp_path / "source", max_shard_size="100KB")
    load_tokenizer(tiny_llama).save_pretrained(tmp_path / "source")
    source = ModelFolder(tmp_path / "source")
    assert len(set(source.files.values())) > 2
    prune_folder(source.path, tmp_path / "pruned", method="magnitude")
    assert len(set(ModelFolder(tmp_path / "pruned").files.values())) > 2
    quantize_folder(tmp_path / "pruned", tmp_path / "int4")
    folder = ModelFolder(tmp_path / "int4")
    assert {f.name for f in folder.files.values()} == {f.name for f in ModelFolder(tmp_path / "pruned").files.values()}
    quantize_folder(tiny_llama, tmp_path / "single")
    model, other = load_model(folder.path), load_model(tmp_path / "single")
    names = dict(model.named_parameters())
    assert names.keys() == dict(other.named_parameters()).keys()
    for module in folder.int4.modules:
        assert torch.equal(names[f"{module}.weight"], folder.weight(module))


def test_sidecar_survives_loading_and_saving_again(pruned, tmp_path):
    """transformers may drop the flag in config.json, never the subfolder: sqft/stamp.json is the authority."""
    folder = ModelFolder(pruned)
    model = load_model(pruned)
    model.save_pretrained(tmp_path / "again")
    assert ModelFolder(tmp_path / "again").stamp is None
    write_sidecar(tmp_path / "again", folder.stamp, folder.masks)  # type: ignore[arg-type]
    again = ModelFolder(tmp_path / "again")
    assert again.stamp == folder.stamp
    assert again.config["sqft"]["pipeline"] == ["wanda"]


def test_stamp_of_an_int4_folder(int4, pruned):
    stamp = ModelFolder(int4).stamp
    assert stamp is not None
    assert stamp.grid is not None
    assert stamp.scale_hash is not None
    assert stamp.mask_hash == ModelFolder(pruned).stamp.mask_hash  # type: ignore[union-attr]
    config = json.loads((int4 / "config.json").read_text())
    assert config["quantization_config"]["sqft"]["scale_hash"] == stamp.scale_hash
    assert "sqft" not in config
    assert not list((int4 / "sqft").glob("model*"))


def test_then_adds_a_step_and_keeps_the_rest():
    first = Stamp(pipeline=["wanda"], base="b", sparsity=0.5, mask_hash="h")
    assert first.then("merge", ranks={"a": 4}).model_dump(exclude={"created_by"}) == {
        **first.model_dump(exclude={"created_by"}), "pipeline": ["wanda", "merge"], "ranks": {"a": 4},
    }  # fmt: skip


def test_nbytes_counts_what_is_on_disk(int4):
    folder = ModelFolder(int4)
    tensors = load_file(folder.path / "model.safetensors")
    for name, tensor in tensors.items():
        assert folder.spec(name).nbytes == tensor.numel() * tensor.element_size()
        assert folder.spec(name).shape == tuple(tensor.shape)
    assert set(folder.files) == set(tensors)


def test_side_files_come_along_but_no_other_weights(pruned, tmp_path):
    source = shutil.copytree(pruned, tmp_path / "source")
    for name in (
        "LICENSE",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "model.gguf",
        "extra/a.txt",
        "extra/b.bin",
        ".git/x",
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    (tmp_path / "target").mkdir()
    copy_side_files(ModelFolder(source), tmp_path / "target")
    copied = {str(p.relative_to(tmp_path / "target")) for p in (tmp_path / "target").rglob("*") if p.is_file()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert copied == {"LICENSE", "README.md", "extra/a.txt", "generation_config.json", *tokenizer}


def test_links_that_lead_nowhere_or_upwards_stay_behind(tiny_llama, tmp_path):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    (source / "extra").mkdir()
    (source / "extra" / "a.txt").write_text("x")
    for link, target in (
        ("gone", "no-such-file"),
        ("self", "."),
        ("extra/up", "../.."),
        ("extra/gone", "none"),
        ("round", "round"),
    ):
        (source / link).symlink_to(target)
    (source / "LICENSE").symlink_to("extra/a.txt")  # as in the hub's cache, where every file is a link
    (source / "notes").symlink_to("extra")
    os.mkfifo(source / "pipe")
    (tmp_path / "target").mkdir()
    copy_side_files(ModelFolder(source), tmp_path / "target")
    copied = {str(p.relative_to(tmp_path / "target")) for p in (tmp_path / "target").rglob("*") if p.is_file()}
    assert copied - {file.name for file in tiny_llama.iterdir()} == {"LICENSE", "extra/a.txt", "notes/a.txt"}


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


# --- damaged folders ---


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


@pytest.mark.parametrize("file", ["tokenizer.json"])
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gemma"])
def test_a_missing_tokenizer_is_not_silently_an_empty_one(request, tmp_path, file, model):
    copy = shutil.copytree(request.getfixturevalue(model), tmp_path / "copy")
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer: copy tokenizer\.json"):
        load_tokenizer(copy)


def test_damaged_tokenizers_are_named(copy):
    for file, text in (("tokenizer.json", "[]"), ("tokenizer.json", "{}"), ("tokenizer_config.json", "[]")):
        original = (copy / file).read_text()
        (copy / file).write_text(text)
        with pytest.raises(CheckpointError, match="has no tokenizer that transformers reads") as caught:
            load_tokenizer(copy)
        assert "\n" not in str(caught.value)
        (copy / file).write_text(original)


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


def test_stamps_that_cannot_be_read(copy):
    stamp = copy / "sqft" / "stamp.json"
    original = stamp.read_text()
    for changes, message in [
        ({"version": 99}, r"stamp version 99, this release reads up to 1: upgrade sqft-plugins"),
        ({"version": "1"}, "stamp version 1"),
        ({"sparsity": "half"}, "stamp field sparsity"),
        ({"colour": 1}, "stamp field colour"),
    ]:
        change_json(stamp, **changes)
        with pytest.raises(CheckpointError, match=message):
            _ = ModelFolder(copy).stamp
        stamp.write_text(original)
    stamp.write_text("{")
    with pytest.raises(CheckpointError, match=r"stamp\.json is not JSON"):
        _ = ModelFolder(copy).stamp


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


def test_masks_that_do_not_hash_to_the_stamp_are_not_written(copy):
    masks = {"a": pack_mask(torch.ones(2, 8, dtype=torch.bool))}
    with pytest.raises(CheckpointError, match="mask_hash does not belong to the masks"):
        write_sidecar(copy, Stamp(pipeline=[], sparsity=0.0, mask_hash="other"), masks)
    write_sidecar(copy, Stamp(pipeline=[], sparsity=0.0, mask_hash=mask_hash(masks)), masks)


def test_other_quantized_formats_are_refused(int4, tmp_path):
    copy = shutil.copytree(int4, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    quantization = config["quantization_config"]

    def with_weights(**changes):
        group = quantization["config_groups"]["group_0"]
        return {**quantization, "config_groups": {"group_0": {**group, "weights": {**group["weights"], **changes}}}}

    cases = [
        ({"quant_method": "awq"}, "is quantized as awq/None: this release reads compressed-tensors/pack-quan"),
        ({**quantization, "format": "float-quantized"}, "compressed-tensors/float-quantized"),
        (with_weights(num_bits=8), "not 4-bit"),
        (with_weights(type="float"), "not 4-bit"),
        (with_weights(actorder="group"), "act-ordered"),
    ]
    for changed, message in cases:
        change_json(copy / "config.json", quantization_config=changed)
        with pytest.raises(SQFTError, match=message):
            _ = ModelFolder(copy).grid
    change_json(copy / "config.json", quantization_config=None)
    with pytest.raises(CheckpointError, match="is packed: copy the model again"):
        ModelFolder(copy).weight("model.layers.0.mlp.up_proj")


def test_a_tensor_that_is_not_there_is_named(pruned):
    with pytest.raises(CheckpointError, match=r"has no tensor model\.layers\.9\.weight"):
        ModelFolder(pruned).weight("model.layers.9")
    assert ModelFolder(pruned).mask("model.embed_tokens") is None
