"""Which adapters a LoRA file can hold: what PEFT adds beside the formula is refused, merged or converted."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch
from helpers_lora import TOKENS, logits, peft_logits, save_adapter, session_of
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import peft_ext
from gguf_ext import export_lora
from gguf_ext.errors import AdapterError
from gguf_ext.lora.config import PLAIN_FIELDS
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.tune.merge import merge_folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "SQFT", "sparse": True}, "is masked: its delta has full rank.*merge it with `sqft merge"),
        ({"peft_type": "SQFT", "quantization_aware": True}, "is quantization-aware.*merge it with `sqft merge"),
        ({"peft_type": "LOHA"}, "is LOHA: llama.cpp has LoRA only"),
        ({"use_dora": True}, "has use_dora=True.*merge it with `sqft merge"),
        ({"bias": "all"}, "has bias='all'"),
        ({"lora_bias": True}, "has lora_bias=True"),
        ({"modules_to_save": ["norm"]}, "has modules_to_save="),
        ({"trainable_token_indices": [5]}, "has trainable_token_indices="),
        ({"layer_replication": [[0, 2], [1, 2]]}, "has layer_replication=.*run it in PEFT"),
        ({"alora_invocation_tokens": [5, 6]}, "has alora_invocation_tokens=.*run it in PEFT"),
        ({"arrow_config": {"top_k": 2}}, "has arrow_config="),
        ({"kasa_config": {"beta": 1e-4}}, "has kasa_config="),
        ({"use_qalora": True}, "has use_qalora=True"),
        ({"of_a_later_release": 3}, "has of_a_later_release=3"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changed the base.*weight_conversion"),
        ({"init_lora_weights": "loftq"}, "'loftq', which changed the base.*sqft merge"),
        ({"init_lora_weights": "corda"}, "'corda', which changed the base.*weight_conversion"),
        ({"init_lora_weights": "lora_ga"}, "'lora_ga', which changed the base.*weight_conversion"),
        ({"init_lora_weights": "of_a_later_release"}, "which changed the base"),
        ({"base_model_name_or_path": "nowhere"}, "name it with --base"),
    ],
)
def test_what_no_lora_file_can_hold_is_refused(changes, words, bases, tmp_path):
    base, _ = bases("llama")
    adapter = save_adapter(base, tmp_path / "adapter", ["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(AdapterError, match=words):
        export_lora(adapter, tmp_path / "lora.gguf")
    assert not (tmp_path / "lora.gguf").exists()


def test_a_dense_sqft_adapter_is_plain_whatever_fields_it_has(bases, tmp_path):
    """With every field that SQFTConfig writes today."""
    base, _ = bases("llama")
    adapter = save_adapter(base, tmp_path / "adapter", ["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    own = peft_ext.SQFTConfig(sparse=False, rank_choices=[config["r"]]).to_dict()
    changed = {**config, **{key: value for key, value in own.items() if key not in config}, "peft_type": "SQFT"}
    (adapter / "adapter_config.json").write_text(json.dumps(changed))
    assert export_lora(adapter, tmp_path / "lora.gguf").modules == 2


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_changed_the_base_is_merged_or_converted(init, bases, tmp_path):
    """Each way out that the refusal names is the model that PEFT loads."""
    base, file = bases("llama")
    original = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(original, LoraConfig(r=4, lora_alpha=8, init_lora_weights=init, target_modules=["q_proj"]))
    model.peft_config["default"].init_lora_weights = True  # as PEFT's manual says, for the conversion at the end
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = init
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn_like(parameter) * 0.05
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0]
    model.save_pretrained(tmp_path / "adapter")
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "initial")
    with pytest.raises(AdapterError, match=rf"init_lora_weights='{init}', which changed the base weight"):
        export_lora(tmp_path / "adapter", tmp_path / "lora.gguf", base=base)
    assert not (tmp_path / "lora.gguf").exists()
    torch.testing.assert_close(peft_logits(base, tmp_path / "adapter"), wanted, rtol=0, atol=1e-4)
    export_lora(tmp_path / "plain", tmp_path / "lora.gguf", base=base)
    with session_of(file) as session:
        session.set_adapters({tmp_path / "lora.gguf": 1.0})
        torch.testing.assert_close(logits(session), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("init", ["pissa_niter_4", "corda", "lora_ga"])
def test_what_loading_does_not_repeat_is_not_merged_either(init, bases, tmp_path):
    base, _ = bases("llama")
    adapter = save_adapter(base, tmp_path / "adapter", ["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": init}))
    with pytest.raises(SQFTError, match=rf"'{init}', which changed .* loading does not repeat: save the"):
        merge_folder(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": False},
        {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 5}},
        {"layers_to_transform": [1], "fan_in_fan_out": True},
    ],
    ids=str,
)
def test_options_that_leave_the_formula_alone_are_exported_right(settings, bases, tmp_path):
    base, file = bases("llama")
    adapter = save_adapter(base, tmp_path / "adapter", ["q_proj", "v_proj"], **settings)
    export_lora(adapter, tmp_path / "lora.gguf")
    with session_of(file) as session:
        session.set_adapters({tmp_path / "lora.gguf": 1.0})
        torch.testing.assert_close(logits(session), peft_logits(base, adapter), rtol=0, atol=1e-4)


def test_every_option_of_peft_is_decided():
    """A field of LoraConfig is either known to leave the formula alone, or refused when it is set."""
    set_by_default = {key for key, value in LoraConfig().to_dict().items() if value and key != "bias"}
    assert set_by_default <= PLAIN_FIELDS
    variants = {field.name for field in fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    assert len(variants) > 4
    assert not variants & PLAIN_FIELDS


@pytest.mark.parametrize(
    "field",
    [
        *({"lora_alpha": value} for value in (None, "x", [8], float("nan"), True)),
        *({"alpha_pattern": value} for value in ({"(": 3}, {"q_proj": "x"}, ["q_proj"])),
        *({"rank_pattern": value} for value in ({"(": 3}, {"q_proj": None}, "q_proj")),
        *({"r": None}, {"rank_choices": 8}, {"target_modules": "("}),
    ],
)
def test_a_configuration_of_no_numbers_and_no_patterns_is_refused_in_one_line(field, bases, tmp_path):
    base, _ = bases("llama")
    adapter = save_adapter(base, tmp_path / "adapter", ["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **field}))
    with pytest.raises(CheckpointError, match=f"{next(iter(field))}.*copy (it|the adapter) again") as caught:
        export_lora(adapter, tmp_path / "lora.gguf", base=base)
    assert "\n" not in str(caught.value)
