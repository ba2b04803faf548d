"""`--init-adapter`: a plain LoRA of PEFT's, made SQFT's, settled as it is or trained on.

pytest tests/sqft_plugins/tune/test_init_adapter.py
"""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.checkpoint import load_model, open_model
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import MismatchError, SQFTError
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.train import train_adapter

EXAMPLES = [Example(f"Question: what follows {n}?\nAnswer:", f" {n + 1}") for n in range(24)]


@pytest.fixture(scope="module")
def lora_of(tiny_llama, tmp_path_factory):
    """`lora_of(**fields of LoraConfig)` → the folder of an adapter whose B is not 0, as stock PEFT saves it."""

    def make(**changes):
        torch.manual_seed(0)
        given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **changes}
        tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), LoraConfig(**given))
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        folder = tmp_path_factory.mktemp("lora")
        tuned.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def lora(lora_of):
    return lora_of()


def train(base, out, lora, adapter=None, **training):
    settings = AdapterSettings.make({"init_adapter": str(lora), **(adapter or {})})
    run = TrainSettings.make({"steps": 0, "batch_size": 4, "dtype": "float32", **training})
    return train_adapter(base, out, EXAMPLES, settings, run)


def logits_of(base, adapter):
    tuned, _ = SavedAdapter(adapter).load(load_model(base, dtype=torch.float32), "max")
    with torch.no_grad():
        return tuned(torch.tensor([[3, 7, 11, 20]])).logits


@pytest.mark.parametrize("rslora", [False, True])
def test_it_computes_what_the_lora_computes(lora_of, tiny_llama, tmp_path, rslora):
    lora = lora_of(use_rslora=rslora)
    report = train(tiny_llama, tmp_path / "a", lora, {"sparse": False})
    ours, theirs = AdapterFolder(tmp_path / "a"), AdapterFolder(lora)
    assert ours.pairs.keys() == theirs.pairs.keys()
    for (_, A, B), (_, A2, B2) in zip(ours.read_pairs(), theirs.read_pairs(), strict=True):
        assert torch.equal(A, A2)
        assert torch.equal(B, B2)
    torch.testing.assert_close(logits_of(tiny_llama, tmp_path / "a"), logits_of(tiny_llama, lora))
    assert (report["losses"], report["tokens"]) == ([], 0)


def test_it_settles_as_it_is_and_merges_into_the_codes(lora, tiny_llama, tmp_path):
    quantize_folder(tiny_llama, tmp_path / "int4")
    settles = {"sparse": False, "quantization_aware": True, "rounding": "compensated"}
    train(tmp_path / "int4", tmp_path / "a", lora, settles)
    merge_folder(tmp_path / "int4", tmp_path / "a", tmp_path / "merged", "max")

    base, merged = open_model(tmp_path / "int4"), open_model(tmp_path / "merged")
    folder = AdapterFolder(tmp_path / "a")
    for pair, A, B in AdapterFolder(lora).read_pairs():
        stored, new = base.quantized(pair.module), merged.quantized(pair.module)
        assert torch.equal(new.codes, folder.settled(pair.module, A, B, stored.codes, 4))
        assert new.grid.equals(stored.grid)
        wanted = stored.dequantize() + folder.scaling(pair.module) * B @ A
        assert (new.dequantize() - wanted).norm() < (stored.dequantize() - wanted).norm()


def test_it_is_trained_on(lora, tiny_llama, tmp_path):
    report = train(tiny_llama, tmp_path / "a", lora, {"sparse": False}, steps=2)
    assert len(report["losses"]) == 2
    assert (report["adapter"]["rank"], report["adapter"]["alpha"]) == (4, 8)
    first = {pair.module: B for pair, _, B in AdapterFolder(lora).read_pairs()}
    assert all(not torch.equal(B, first[pair.module]) for pair, _, B in AdapterFolder(tmp_path / "a").read_pairs())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"rank": 8}, r"rank=8 beside --init-adapter \S+, whose rank is 4"),
        ({"alpha": 4.0}, "alpha=4 beside"),
        ({"target_modules": ["q_proj"]}, "--target-modules beside"),
        ({"init_adapter": None}, "steps=0 trains nothing"),
        ({"rank_choices": [8, 4]}, r"rank_choices.*8.*4"),
    ],
)
def test_settings_that_say_otherwise_are_refused(lora, tiny_llama, tmp_path, given, text):
    with pytest.raises(SQFTError, match=text):
        train(tiny_llama, tmp_path / "a", lora, {"sparse": False, **given})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"use_dora": True}, "more than A and B of linear layers"),
        ({"modules_to_save": ["lm_head"]}, "more than A and B of linear layers"),
        ({"rank_pattern": {"q_proj": 2}}, r"several ranks \(rank_pattern\), \[2, 4\]"),
        ({"alpha_pattern": {"q_proj": 4}}, r"several scalings \(alpha_pattern\), \[1.0, 2.0\]"),
        ({"init_lora_weights": "pissa"}, "which changed its base"),
    ],
)
def test_adapters_of_another_kind_are_refused(lora_of, tiny_llama, tmp_path, fields, text):
    with pytest.raises(SQFTError, match=text):
        train(tiny_llama, tmp_path / "a", lora_of(**fields), {"sparse": False})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"intermediate_size": 96}, r"has model\.layers\.0\.mlp\.down_proj as \[64, 128\], the model as \[64, 96\]"),
        (
            {"num_hidden_layers": 1},
            r"adapts model\.layers\.1\.mlp\.down_proj, which is no layer of this",
        ),
    ],
)
def test_an_adapter_of_another_model_is_refused(lora, tiny_model, tmp_path, changes, text):
    tiny_model("llama", **changes).save_pretrained(tmp_path / "model")
    with pytest.raises(MismatchError, match=text):
        train(tmp_path / "model", tmp_path / "a", lora)


def test_an_sqft_adapter_is_refused(lora, tiny_llama, tmp_path):
    train(tiny_llama, tmp_path / "a", lora, {"sparse": False})
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["peft_type"] == "SQFT"
    with pytest.raises(SQFTError, match="is SQFT, not a plain LoRA"):
        train(tiny_llama, tmp_path / "b", tmp_path / "a")


def test_the_largest_rank_of_a_search_space_is_that_of_the_lora(lora, tiny_llama, tmp_path):
    report = train(tiny_llama, tmp_path / "a", lora, {"sparse": False, "rank_choices": [4, 2]}, steps=1)
    assert (report["adapter"]["rank"], report["adapter"]["rank_choices"]) == (4, [4, 2])
