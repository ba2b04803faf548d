"""The steps train, extract and merge on a tiny model."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.checkpoint.shards import replace_tensor
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, OutputExistsError, SQFTError
from sqft_plugins.evaluate import open_session
from sqft_plugins.measure import zeros_kept
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.train import train_adapter

EXAMPLES = [Example(f"Question: what follows {n}?\nAnswer:", f" {n + 1}") for n in range(40)]
SETTINGS = {"rank": 8, "alpha": 16, "rank_choices": [8, 6, 4]}


@pytest.fixture(scope="module")
def adapter(pruned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    training = TrainSettings.make({"steps": 30, "batch_size": 8, "learning_rate": 1e-2})
    report = train_adapter(pruned, folder, EXAMPLES, AdapterSettings.make(SETTINGS), training)
    assert report["losses"][-1] < report["losses"][0] - 0.5  # random weights learn little
    return folder


def test_training_writes_an_adapter_its_losses_and_how_to_load_it(adapter, pruned) -> None:
    assert len(json.loads((adapter / "training.json").read_text())["losses"]) == 30
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(pruned)
    assert config["peft_type"] == "SQFT"
    assert "import peft_ext" in (adapter / "README.md").read_text()
    assert (adapter / "loss.png").stat().st_size > 1000


def test_training_is_repeatable(adapter, pruned, tmp_path) -> None:
    training = TrainSettings.make({"steps": 30, "batch_size": 8, "learning_rate": 1e-2})
    train_adapter(pruned, tmp_path / "again", EXAMPLES, AdapterSettings.make(SETTINGS), training)
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (adapter / name).read_bytes()


def test_the_merged_model_keeps_the_zeros_through_int4(adapter, pruned, tmp_path) -> None:
    report = merge_folder(pruned, adapter, tmp_path / "merged", "heuristic")
    assert report["zeros_lost"] == 0
    assert report["max_logit_difference"] < 1e-5
    base, merged = ModelFolder(pruned), ModelFolder(tmp_path / "merged")
    assert merged.stamp is not None
    assert merged.stamp.pipeline == ["wanda", "sqft-merge"]
    assert merged.stamp.mask_hash == base.stamp.mask_hash
    assert set(merged.stamp.ranks.values()) == {6}
    assert zeros_kept(merged, base.masks) == 1.0
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (pruned / "tokenizer.json").read_bytes()
    changed = [m for m in base.masks if not torch.equal(base.weight(m), merged.weight(m))]
    assert len(changed) == report["modules"]
    quantize_folder(tmp_path / "merged", tmp_path / "int4")
    assert zeros_kept(ModelFolder(tmp_path / "int4"), base.masks) == 1.0
    assert load_model(tmp_path / "int4").get_parameter("model.layers.0.self_attn.q_proj.weight").ndim == 2


def test_a_plain_lora_merge_loses_the_zeros_and_gets_no_stamp(pruned, tmp_path) -> None:
    training = TrainSettings.make({"steps": 2, "batch_size": 4})
    train_adapter(pruned, tmp_path / "lora", EXAMPLES, AdapterSettings.make({"rank": 8}), training, tuner="lora")
    report = merge_folder(pruned, tmp_path / "lora", tmp_path / "merged", "max")
    assert report["zeros_lost"] > 10_000
    assert ModelFolder(tmp_path / "merged").stamp is None
    assert "sqft" not in ModelFolder(tmp_path / "merged").config


def test_merging_refuses_what_does_not_belong_together(adapter, pruned, tiny_llama, tmp_path) -> None:
    with pytest.raises(SQFTError, match="was trained over a base with other zeros"):
        merge_folder(tiny_llama, adapter, tmp_path / "out")
    quantize_folder(pruned, tmp_path / "int4")
    with pytest.raises(SQFTError, match=r"is INT4 and .* is not quantization-aware: .* Keep it unmerged"):
        merge_folder(tmp_path / "int4", adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="exists: choose another path, or replace it with --overwrite"):
        merge_folder(pruned, adapter, tmp_path / "out")


def test_training_refuses_before_it_loads(pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sqft_plugins.tune.train.load_base", lambda *a, **k: pytest.fail("the model was loaded"))
    adapter, training = AdapterSettings.make(SETTINGS), TrainSettings.make({"steps": 1})
    with pytest.raises(SQFTError, match=r"--tuner 'lroa' is unknown: did you mean 'lora'\?"):
        train_adapter(pruned, tmp_path / "a", EXAMPLES, adapter, training, tuner="lroa")
    with pytest.raises(CheckpointError, match="is not a folder"):
        train_adapter(tmp_path / "none", tmp_path / "a", EXAMPLES, adapter, training)
    with pytest.raises(SQFTError, match="max_length=8"):
        train_adapter(pruned, tmp_path / "a", EXAMPLES, adapter, training.model_copy(update={"max_length": 8}))


def test_a_loss_that_is_not_finite_stops_the_run(pruned, tmp_path) -> None:
    training = TrainSettings.make({"steps": 20, "batch_size": 4, "learning_rate": 1e30})
    with pytest.raises(SQFTError, match=r"loss=.* at step \d+: lower --learning-rate"):
        train_adapter(pruned, tmp_path / "a", EXAMPLES, AdapterSettings.make(SETTINGS), training)
    assert not (tmp_path / "a").exists()


def test_a_weight_that_is_not_adapted_and_not_finite_is_named(pruned, tmp_path) -> None:
    name = "model.layers.1.post_attention_layernorm.weight"
    damaged = shutil.copytree(pruned, tmp_path / "damaged")
    replace_tensor(damaged / "model.safetensors", name, torch.full((64,), torch.nan))
    training = TrainSettings.make({"steps": 2, "batch_size": 4})
    with pytest.raises(SQFTError, match=rf"loss=nan at step 1: .*{re.escape(name)} of the model holds NaN or infinity"):
        train_adapter(damaged, tmp_path / "out", EXAMPLES, AdapterSettings.make(SETTINGS), training)
    assert not (tmp_path / "out").exists()


def test_a_masked_adapter_over_an_int4_base_is_refused(adapter, pruned, tmp_path) -> None:
    quantize_folder(pruned, tmp_path / "int4")
    with pytest.raises(SQFTError, match=r"sparse=True over a quantized base \(.*q_proj\) cannot merge back onto"):
        open_session(tmp_path / "int4", adapter=adapter)


def test_a_dense_elastic_adapter_over_an_int4_base_trains(pruned, tmp_path) -> None:
    quantize_folder(pruned, tmp_path / "int4")
    training = TrainSettings.make({"steps": 10, "batch_size": 8, "learning_rate": 1e-2})
    settings = AdapterSettings.make({**SETTINGS, "sparse": False})
    report = train_adapter(tmp_path / "int4", tmp_path / "dense", EXAMPLES, settings, training)
    assert report["losses"][-1] < report["losses"][0]
    session = open_session(tmp_path / "int4", adapter=tmp_path / "dense", rank="min")
    assert len(list(session.generate(["What follows 3?"], 4))) == 1


def test_gpt2_whose_weights_are_transposed_is_pruned_tuned_and_merged(tiny_model, tiny_tokenizer, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer("byte-level").save_pretrained(tmp_path / "gpt2")
    prune_folder(tmp_path / "gpt2", tmp_path / "pruned", sparsity=0.5, sequences=4, length=32)
    adapter = AdapterSettings.make({"rank": 4, "target_modules": ["c_attn", "c_fc"]})
    training = TrainSettings.make({"steps": 2, "batch_size": 2})
    train_adapter(tmp_path / "pruned", tmp_path / "adapter", [Example("1 + 1 =", " 2")] * 4, adapter, training)
    report = merge_folder(tmp_path / "pruned", tmp_path / "adapter", tmp_path / "merged", "max")
    assert report["zeros_lost"] == 0
    assert zeros_kept(ModelFolder(tmp_path / "merged"), ModelFolder(tmp_path / "pruned").masks) == 1.0
