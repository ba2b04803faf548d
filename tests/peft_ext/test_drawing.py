"""Ranks are drawn once for every forward pass of training, whoever begins it, and only for what is trained."""

import copy
import pickle

import pytest
import torch
from helpers_peft import fill_adapter
from helpers_training import make_config
from peft import PeftModel, get_peft_model
from torch.utils.checkpoint import checkpoint

from peft_ext import SQFTConfig
from peft_ext.drawing import ENTRY
from peft_ext.model import sqft_layers

CHOICES = {8, 6, 4}


@pytest.fixture
def model(sparse_llama) -> PeftModel:
    return fill_adapter(get_peft_model(sparse_llama(), make_config())).train()


def ranks(model, adapter: str = "default") -> list[int]:
    """Those in force, layer by layer."""
    return [layer.rank_of(adapter) for _, layer in sqft_layers(model, adapter)]


def seen_in(model, call, times: int = 30) -> set[int]:
    seen: set[int] = set()
    for seed in range(times):
        torch.manual_seed(seed)
        call()
        seen |= set(ranks(model))
    return seen


def backbone(model):
    return model.base_model.model.model


ENTRIES = {
    "peft": lambda m, ids: m(input_ids=ids),
    "tuner": lambda m, ids: m.base_model(input_ids=ids),
    "base": lambda m, ids: m.get_base_model()(input_ids=ids),
    "backbone": lambda m, ids: backbone(m)(input_ids=ids),
    "decoder": lambda m, ids: m.get_decoder()(input_ids=ids),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_way_to_call_the_model_draws(model, tokens, entry) -> None:
    assert seen_in(model, lambda: ENTRIES[entry](model, tokens)) == CHOICES


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("mode", ["without gradients", "evaluation"])
def test_no_way_to_call_it_draws_where_nothing_is_trained(model, tokens, entry, mode) -> None:
    model.set_active_rank("min")
    if mode == "evaluation":
        model.eval()
    seen: list[int] = []
    backbone(model).layers[0].self_attn.register_forward_pre_hook(lambda *_: seen.extend(ranks(model)))
    with torch.set_grad_enabled(mode == "evaluation"):
        ENTRIES[entry](model, tokens)
    assert set(seen) == {4}


def test_a_block_alone_draws_its_own(model) -> None:
    block, x = backbone(model).layers[1].mlp, torch.randn(1, 3, model.config.hidden_size)
    others = [layer for name, layer in sqft_layers(model, "default") if "layers.1.mlp" not in name]
    seen = set()
    for _ in range(30):
        block(x)
        seen |= {layer.rank_of("default") for _, layer in sqft_layers(block, "default")}
        assert all(layer.elastic["default"].ranks.drawn is None for layer in others)
    assert seen == CHOICES


def test_a_pass_draws_once_whatever_is_inside(model, tokens, monkeypatch) -> None:
    draws = []
    monkeypatch.setattr("peft_ext.drawing._shared_seed", lambda: draws.append(1) or len(draws))
    for call in ENTRIES.values():
        draws.clear()
        call(model, tokens)
        assert draws == [1]


def test_the_head_is_drawn_with_the_backbone(sparse_llama, tokens) -> None:
    """A trainer that computes the loss in pieces calls the head alone, after the backbone."""
    adapted = get_peft_model(sparse_llama(), make_config(target_modules=["q_proj", "lm_head"])).train()
    head = adapted.base_model.model.lm_head
    seen = set()
    for _ in range(30):
        hidden = backbone(adapted)(input_ids=tokens).last_hidden_state
        before = head.rank_of("default")
        for piece in hidden.split(2, dim=1):
            head(piece)
        assert head.rank_of("default") == before
        seen.add(before)
    assert seen == CHOICES


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("what", ["backbone", "blocks"])
def test_a_checkpoint_around_an_entry_sees_the_ranks_of_its_forward(model, tokens, reentrant, what) -> None:
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()

    def run(call):
        if what == "backbone":
            return call(lambda x: backbone(model)(inputs_embeds=x, use_cache=False).last_hidden_state, embedded)
        x, rotary = embedded, backbone(model).rotary_emb(embedded, torch.arange(tokens.shape[1])[None])
        for layer in backbone(model).layers:
            x = call(lambda x, layer=layer: layer(x, position_embeddings=rotary), x)
        return x

    def gradients(call):
        model.zero_grad()
        torch.manual_seed(3)
        output = run(call)
        drawn = ranks(model)
        output.square().mean().backward()
        assert ranks(model) == drawn
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(lambda function, x: function(x))
    again = gradients(lambda function, x: checkpoint(function, x, use_reentrant=reentrant))
    assert plain.keys() == again.keys() != set()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)
    assert seen_in(model, lambda: run(lambda f, x: checkpoint(f, x, use_reentrant=reentrant))) == CHOICES


@pytest.mark.parametrize(("error", "after"), [(ZeroDivisionError, "backbone"), (KeyboardInterrupt, "peft")])
def test_a_pass_that_fails_does_not_stop_the_next_ones(model, tokens, error, after) -> None:
    def fail(*_):
        raise error

    handle = backbone(model).norm.register_forward_pre_hook(fail)
    with pytest.raises(error):
        model(input_ids=tokens)
    handle.remove()
    assert seen_in(model, lambda: ENTRIES[after](model, tokens)) == CHOICES


def frozen_below(sparse_llama, trained: SQFTConfig) -> PeftModel:
    model = fill_adapter(get_peft_model(sparse_llama(), make_config()))
    model.set_active_rank(6)
    model.add_adapter("new", trained)
    model.base_model.set_adapter(["default", "new"])
    model.set_requires_grad("default", False)
    return model.train()


def test_a_frozen_adapter_stays_at_its_chosen_rank(sparse_llama, tokens) -> None:
    model = frozen_below(sparse_llama, make_config(rank_choices=None))
    assert seen_in(model, lambda: model(input_ids=tokens)) == {6}
    assert seen_in(model, lambda: backbone(model)(input_ids=tokens)) == {6}


def test_the_adapter_above_it_is_drawn(sparse_llama, tokens) -> None:
    model = frozen_below(sparse_llama, make_config())
    seen = set()
    for _ in range(30):
        model(input_ids=tokens)
        seen |= set(ranks(model, "new"))
        assert set(ranks(model)) == {6}
    assert seen == CHOICES


def test_an_adapter_that_is_frozen_after_training_goes_back_to_its_chosen_rank(model, tokens) -> None:
    model.set_active_rank(6)
    model(input_ids=tokens)
    model.set_requires_grad("default", False)
    model.add_adapter("new", make_config(rank_choices=None))
    model.base_model.set_adapter(["default", "new"])
    model.set_requires_grad("default", False)
    assert seen_in(model.train(), lambda: model(input_ids=tokens)) == {6}


def test_two_trained_adapters_draw_each_for_itself(sparse_llama, tokens) -> None:
    model = frozen_below(sparse_llama, make_config())
    model.set_requires_grad(["default", "new"], True)
    pairs = set()
    for _ in range(60):
        model(input_ids=tokens)
        pairs.add((ranks(model)[0], ranks(model, "new")[0]))
    assert len(pairs) > 3
    assert {first for first, _ in pairs} == {second for _, second in pairs} == CHOICES


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_draws_for_itself(model, tokens, copied) -> None:
    model(input_ids=tokens)
    before, other = ranks(model), copied(model)
    assert seen_in(other, lambda: backbone(other)(input_ids=tokens)) == CHOICES
    assert ranks(model) == before


def test_nothing_of_it_stays_in_an_unloaded_model(model) -> None:
    base = model.unload()
    for module in base.modules():
        assert not hasattr(module, ENTRY)
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
