"""Adapters of other types beside SQFT's: refused in both orders and through every call, before anything is changed."""

from __future__ import annotations

import os

import pytest
import torch
from helpers_peft import by_transformers, fill_adapter
from helpers_training import make_config
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)

from peft_ext import Linear
from peft_ext.loading_guards import newer_peft_wanted
from sqft_plugins.errors import SQFTError

TARGETS = ["q_proj"]
OTHERS = [
    LoraConfig(target_modules=TARGETS),
    LoraConfig(target_modules=["k_proj", "q_proj", "gate_proj"], modules_to_save=["lm_head"]),
    LoHaConfig(target_modules=TARGETS),
    LoKrConfig(target_modules=TARGETS),
    IA3Config(target_modules=TARGETS, feedforward_modules=[]),
    OFTConfig(target_modules=TARGETS, oft_block_size=8),
    BOFTConfig(target_modules=TARGETS, boft_block_size=8),
    VeraConfig(target_modules=TARGETS),
    AdaLoraConfig(target_modules=TARGETS, total_step=10),
    TrainableTokensConfig(token_indices=[1, 2], target_modules=["embed_tokens"]),
]
REFUSED = "SQFT and other types do not mix in one model"


@pytest.fixture(autouse=True)
def compilers(monkeypatch, tmp_path):
    """BOFT leaves CC and CXX set to gcc where its extension cannot be built (`patch_environment` of
    peft/tuners/boft/layer.py yields without `finally`): later tests would compile C++ with it. It is built in a folder
    of the test: in the user's, torch waits for ever for the lock of a build that was killed."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    before = {name: os.environ.get(name) for name in ("CC", "CXX")}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def kind(config) -> str:
    return f"{type(config).__name__}-{len(config.target_modules)}"


def ours(**changes):
    return make_config(target_modules=TARGETS, **changes)


def state(model) -> dict:
    """All that an adapter changes in a model."""
    return {
        "modules": {name: type(module) for name, module in model.named_modules()},
        "parameters": {name: (id(p), p.requires_grad) for name, p in model.named_parameters()},
        "configs": {name: id(config) for name, config in (getattr(model, "peft_config", None) or {}).items()},
        "active": {
            name: list(module.active_adapters) for name, module in model.named_modules() if isinstance(module, Linear)
        },
        "transformers": getattr(model, "_hf_peft_config_loaded", None),
        "hooks": len(model._forward_pre_hooks),
    }


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize("name", ["default", "another"])
@pytest.mark.parametrize("other", OTHERS, ids=kind)
def test_sqft_does_not_come_over_another_type(sparse_llama, tokens, other, name) -> None:
    model = sparse_llama()
    get_peft_model(model, other)  # a PeftModel around it; the layers are in the model
    before, expected = state(model), logits(model.eval(), tokens)
    ways = [lambda: inject_adapter_in_model(ours(), model, name), lambda: get_peft_model(model, ours(), name)]
    if newer_peft_wanted() is None:
        ways.append(lambda: model.add_adapter(ours(), "third"))
    for attach in ways:
        with pytest.raises(SQFTError, match=REFUSED):
            attach()
        assert {**state(model), "transformers": before["transformers"]} == before
        assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize("name", ["default", "another"])
@pytest.mark.parametrize("other", OTHERS, ids=kind)
def test_no_other_type_comes_over_sqft(sparse_llama, tokens, other, name) -> None:
    model = fill_adapter(inject_adapter_in_model(ours(), sparse_llama())).eval()
    before, expected = state(model), logits(model, tokens)
    ways = [lambda: get_peft_model(model, other, name)]
    if not isinstance(other, VeraConfig):  # which PEFT does not inject
        ways.append(lambda: inject_adapter_in_model(other, model, name))
    for attach in ways:
        with pytest.raises(SQFTError, match=REFUSED):
            attach()
        assert state(model) == before
        assert torch.equal(logits(model, tokens), expected)


PLAIN = LoraConfig(target_modules=TARGETS)


@by_transformers
@pytest.mark.parametrize(("first", "second"), [(PLAIN, ours()), (ours(), PLAIN)], ids=["lora first", "sqft first"])
def test_transformers_own_calls_refuse_too(sparse_llama, tokens, first, second) -> None:
    model = sparse_llama()
    model.add_adapter(first, "first")
    before, expected = state(model), logits(model.eval(), tokens)
    with pytest.raises(SQFTError, match=REFUSED):
        model.add_adapter(second, "second")
    assert state(model) == before
    assert model.active_adapters() == ["first"]
    assert torch.equal(logits(model, tokens), expected)


@by_transformers
def test_a_loaded_adapter_of_another_type_is_refused(sparse_llama, tmp_path) -> None:
    inject = get_peft_model(sparse_llama(), LoraConfig(target_modules=TARGETS))
    inject.save_pretrained(tmp_path / "lora")
    get_peft_model(sparse_llama(), ours()).save_pretrained(tmp_path / "sqft")
    for first, second in (("lora", "sqft"), ("sqft", "lora")):
        model = sparse_llama()
        model.load_adapter(str(tmp_path / first), adapter_name="first")
        with pytest.raises(SQFTError, match=REFUSED):
            model.load_adapter(str(tmp_path / second), adapter_name="second")
        assert list(model.peft_config) == ["first"]


@by_transformers
def test_the_ways_out_that_the_refusal_names_work(sparse_llama, tokens) -> None:
    lora = LoraConfig(target_modules=TARGETS)
    deleted = sparse_llama()
    deleted.add_adapter(lora, "lora")
    deleted.delete_adapter("lora")
    deleted.add_adapter(ours(), "sqft")
    unloaded = inject_adapter_in_model(ours(), get_peft_model(sparse_llama(), lora).unload())
    for model in (deleted, unloaded):
        layers = [module for module in model.modules() if isinstance(module, Linear)]
        assert len(layers) == 2
        assert all(isinstance(layer.base_layer, torch.nn.Linear) for layer in layers)

    back = sparse_llama()
    back.add_adapter(ours(), "sqft")
    back.delete_adapter("sqft")
    back.add_adapter(lora, "lora")
    assert not [module for module in back.modules() if isinstance(module, Linear)]
    assert logits(back, tokens).isfinite().all()


def test_what_belongs_to_sqft_itself_is_not_another_type(sparse_llama, tokens) -> None:
    model = get_peft_model(sparse_llama(), ours(trainable_token_indices=[1, 2], modules_to_save=["lm_head"]))
    model.add_adapter("second", ours())
    assert logits(model, tokens).isfinite().all()
    injected = inject_adapter_in_model(ours(trainable_token_indices=[1, 2]), sparse_llama(), "first")
    inject_adapter_in_model(ours(), injected, "second")
    lora = get_peft_model(sparse_llama(), LoraConfig(target_modules=TARGETS, trainable_token_indices=[1]))
    lora.add_adapter("second", LoraConfig(target_modules=["k_proj"]))  # LoRA itself is as it was
    assert isinstance(lora, PeftModel)


# --- nothing half in ---


@pytest.mark.parametrize(
    "refused",
    [
        {"mask_hash": "another", "target_modules": ["q_proj", "o_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "post_attention_layernorm"], "trainable_token_indices": [1]},
        {"target_modules": ["k_proj"], "mask_hash": "another"},
        {"use_dora": True, "target_modules": ["k_proj"]},
        {"layer_replication": [(0, 2), (1, 2)]},
    ],
)
def test_a_refused_further_adapter_leaves_no_trace(sparse_llama, tokens, refused) -> None:
    model = get_peft_model(sparse_llama(), ours())
    model.add_adapter("active", ours())
    fill_adapter(model).eval().set_adapter("active")
    before, expected, names = state(model.base_model.model), logits(model, tokens), list(model.state_dict())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"other zeros|linear layers only|use_dora|layer_replication"):
            model.add_adapter("refused", make_config(**{"target_modules": TARGETS, **refused}))
        assert state(model.base_model.model) == before
        assert list(model.state_dict()) == names
        assert model.active_adapters == ["active"]
        assert torch.equal(logits(model, tokens), expected)


def test_a_refused_adapter_does_not_multiply_the_layers(sparse_llama, tokens) -> None:
    base = sparse_llama()
    before, expected = state(base), logits(base, tokens)
    for _ in range(2):
        with pytest.raises(SQFTError, match="other zeros"):
            get_peft_model(base, ours(layer_replication=[(0, 2), (1, 2)], mask_hash="another"))
        assert state(base) == before
        assert base.config.num_hidden_layers == 2
        assert torch.equal(logits(base, tokens), expected)


def test_a_refused_adapter_of_the_same_name_leaves_the_one_that_is_there(sparse_llama, tokens) -> None:
    model = fill_adapter(inject_adapter_in_model(ours(), sparse_llama())).eval()
    before, expected = state(model), logits(model, tokens)
    with pytest.raises(SQFTError, match="other zeros"):
        inject_adapter_in_model(ours(r=8, lora_alpha=3, mask_hash="another"), model)
    assert state(model) == before
    assert torch.equal(logits(model, tokens), expected)


@by_transformers
def test_transformers_forgets_a_refused_first_adapter(sparse_llama, tmp_path) -> None:
    model = sparse_llama()
    with pytest.raises(SQFTError, match="other zeros"):
        model.add_adapter(ours(mask_hash="another"))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").exists()
    model.add_adapter(ours())


# --- layers that are replicated ---


def test_adapters_of_one_replication_share_it(sparse_llama, tokens) -> None:
    settings = {"layer_replication": [(0, 2), (1, 2)], "rank_choices": None}
    model = get_peft_model(sparse_llama(), ours(**settings))
    model.add_adapter("second", ours(**{**settings, "layer_replication": [[0, 2], [1, 2]]}))
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum", combination_type="cat")
    assert len(model.base_model.model.model.layers) == 3
    with pytest.raises(SQFTError, match=r"layer_replication=\[\(0, 1\)\] cannot be done in a model with adapters"):
        model.add_adapter("third", ours(**{**settings, "layer_replication": [(0, 1)]}))
    assert logits(model, tokens).isfinite().all()
