"""What measures a model in memory does it in evaluation, and leaves every module in its own mode."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from sqft_plugins.compress.magnitude import Magnitude
from sqft_plugins.compress.prune import prune_model
from sqft_plugins.compress.sparsegpt import SparseGPT
from sqft_plugins.compress.wanda import Wanda
from sqft_plugins.errors import SQFTError
from sqft_plugins.modes import evaluating
from sqft_plugins.tune.packing import check_packing

TOKENS = torch.arange(64).view(2, 32)


def gpt2() -> GPT2LMHeadModel:
    """With dropout, as GPT-2 comes."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=64, **ids))


def training(model: nn.Module) -> None:
    model.train()


def a_block_alone(model: nn.Module) -> None:
    model.eval().transformer.h[1].train()


def a_frozen_part(model: nn.Module) -> None:
    model.train().transformer.h[0].mlp.eval()


def checkpointing(model: nn.Module) -> None:
    model.train().gradient_checkpointing_enable()


MODES = [training, a_block_alone, a_frozen_part, checkpointing]


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("set_mode", MODES)
@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT(), Magnitude()], ids=lambda pruner: pruner.name)
def test_pruning_in_memory_does_not_depend_on_the_mode(set_mode, pruner) -> None:
    plain, other = gpt2().eval(), gpt2()
    set_mode(other)
    before = modes(other)
    expected, _ = prune_model(plain, TOKENS, pruner, 0.5)
    found, _ = prune_model(other, TOKENS, pruner, 0.5)
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name))
    assert modes(other) == before


def test_the_modes_come_back_after_an_error() -> None:
    model = gpt2()
    a_frozen_part(model)
    before = modes(model)
    model.transformer.h[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prune_model(model, TOKENS, Wanda(), 0.5)
    assert modes(model) == before
    with evaluating(model):
        assert not any(modes(model).values())
    assert modes(model) == before


def test_trying_the_packing_leaves_the_modes(tiny_model) -> None:
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    before = modes(model)
    check_packing(model)
    assert modes(model) == before


def test_a_refused_batch_leaves_the_modes() -> None:
    model = gpt2().train()
    with pytest.raises(SQFTError, match="length=80 is more than the 64 positions"):
        prune_model(model, torch.zeros(1, 80, dtype=torch.int64), Wanda(), 0.5)
    assert all(modes(model).values())
