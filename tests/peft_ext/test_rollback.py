"""A refused adapter leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from helpers_peft import fill_adapter, logits
from helpers_training import make_config
from peft import get_peft_model

from sqft_plugins.errors import MismatchError, SQFTError


def trained(model) -> set[str]:
    """The kinds of parameters that an optimizer would get."""
    return {name.rpartition("lora_")[2][0] if "lora_" in name else name for name, p in model.named_parameters()
            if p.requires_grad}  # fmt: skip


@pytest.mark.parametrize(
    "refused",
    [{"target_modules": ["q_proj", "post_attention_layernorm"]}, {"mask_hash": "another", "modules_to_save": ["norm"]}],
    ids=["on the way", "at the end"],
)
def test_a_refused_adapter_leaves_the_base_as_it_was(sparse_llama, tokens, refused) -> None:
    """Else the next attempt, which is what a notebook does, trains the base too, and its zeros are gone."""
    base = sparse_llama()
    modules, plain = {name: type(module) for name, module in base.named_modules()}, logits(base, tokens)
    with pytest.raises(SQFTError):
        get_peft_model(base, make_config(**refused))
    assert {name: type(module) for name, module in base.named_modules()} == modules
    assert not base._forward_pre_hooks
    model = get_peft_model(base, make_config())
    assert trained(model) == {"A", "B"}
    assert torch.equal(logits(model.eval(), tokens), plain)


def test_a_refused_second_adapter_leaves_the_first_as_it_was(sparse_llama, tokens) -> None:
    model = fill_adapter(get_peft_model(sparse_llama(), make_config()))
    expected, names = logits(model.eval(), tokens), [name for name, _ in model.named_modules()]
    second = make_config(mask_hash="another", modules_to_save=["lm_head"], target_modules=["q_proj", "o_proj"])
    for _ in range(2):
        with pytest.raises(MismatchError, match="adapter 'second' was trained over a base with other zeros"):
            model.add_adapter("second", second)
        assert list(model.peft_config) == ["default"]
        assert not [name for name, _ in model.named_modules() if "second" in name]
        assert torch.equal(logits(model, tokens), expected)
    assert set(names) <= {name for name, _ in model.named_modules()}
    assert trained(model) == {"A", "B"}
