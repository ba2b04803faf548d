"""Merging into a float base: every tensor keeps the dtype in which the base stores it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from peft_ext import SQFTConfig
from sqft_plugins.checkpoint import ModelFolder, load_model, load_tokenizer
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.errors import CheckpointError
from sqft_plugins.tune.extract import extract_adapter
from sqft_plugins.tune.merge import merge_folder


@pytest.fixture(scope="module")
def mixed(tiny_llama, tmp_path_factory):
    """A pruned base in bfloat16 whose norms, and they alone, are float32; and an adapter over it that is not zero."""
    place = tmp_path_factory.mktemp("mixed")
    source = shutil.copytree(tiny_llama, place / "float")
    tensors = load_file(source / "model.safetensors")
    stored = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors.items()}
    stored["model.norm.weight"] = stored["model.norm.weight"] + 1e-5  # not exact in bfloat16
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    prune_folder(source, place / "pruned", method="magnitude")
    settings = SQFTConfig(r=4, lora_alpha=8, rank_choices=[4, 2], target_modules=["q_proj", "down_proj"])
    model = get_peft_model(load_model(place / "pruned", dtype=torch.float32), settings)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(place / "adapter")
    return place / "pruned", place / "adapter"


def test_norms_stay_in_float32_and_the_rest_in_bfloat16(mixed, tmp_path):
    base, adapter = mixed
    merge_folder(base, adapter, tmp_path / "merged")
    before, after = ModelFolder(base), ModelFolder(tmp_path / "merged")
    assert {name: after.spec(name) for name in after.files} == {name: before.spec(name) for name in before.files}
    changed = {name for name in before.files if not torch.equal(before.tensor(name), after.tensor(name))}
    assert changed == {name for name in before.files if "q_proj" in name or "down_proj" in name}
    assert after.config["dtype"] == before.config["dtype"]


def test_a_tied_embedding_that_is_stored_as_the_head_keeps_its_dtype(mixed, tmp_path):
    base = shutil.copytree(mixed[0], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    merge_folder(base, mixed[1], tmp_path / "merged")
    merged = ModelFolder(tmp_path / "merged")
    written = {name for name in merged.files if merged.spec(name).dtype == torch.bfloat16}
    assert written == {name for name in merged.files if "norm" not in name}
    assert "model.embed_tokens.weight" in written


def test_an_adapter_without_one_of_its_tensors_is_named(mixed, tmp_path):
    adapter = shutil.copytree(mixed[1], tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"has lora_A of model\.layers\.1\.self_attn\.q_proj but no lora_B"):
        extract_adapter(adapter, tmp_path / "out")


def test_the_chat_template_of_the_training_reaches_the_merged_model(mixed, tmp_path):
    template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    adapter = shutil.copytree(mixed[1], tmp_path / "adapter")
    (adapter / "chat_template.jinja").write_text(template)
    extract_adapter(adapter, tmp_path / "sub")
    merge_folder(mixed[0], tmp_path / "sub", tmp_path / "merged", "max")
    chat = [{"role": "user", "content": "seven"}]
    assert load_tokenizer(tmp_path / "merged").apply_chat_template(chat, tokenize=False) == "<user>seven"


def test_an_adapter_saved_as_a_pickle_is_merged_and_extracted_alike(mixed, tmp_path):
    """adapter_model.bin, as PEFT wrote it before safetensors."""
    adapter = shutil.copytree(mixed[1], tmp_path / "adapter")
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    for name, source in (("a", mixed[1]), ("b", adapter)):
        merge_folder(mixed[0], source, tmp_path / f"merged-{name}")
        extract_adapter(source, tmp_path / f"sub-{name}")
    for file in ("merged-{}/model.safetensors", "sub-{}/adapter_model.safetensors"):
        assert (tmp_path / file.format("a")).read_bytes() == (tmp_path / file.format("b")).read_bytes()
    (adapter / "adapter_model.bin").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is damaged"):
        merge_folder(mixed[0], adapter, tmp_path / "merged-c")
