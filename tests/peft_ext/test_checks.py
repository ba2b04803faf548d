"""Layers, merges and combinations that cannot work are refused by name."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from helpers_peft import config, elastic, logits, two_adapters
from helpers_training import make_config
from peft import get_peft_model
from torch import nn

from sqft_plugins.errors import SQFTError

LAYER = "model.layers.0.self_attn.q_proj"


class Linear4bit(nn.Linear):
    """As bitsandbytes has it: an nn.Linear with two codes in a byte."""


@pytest.mark.parametrize("sparse", [True, False])
def test_a_linear_quantized_by_another_library_is_refused(sparse_llama, sparse) -> None:
    base = sparse_llama()
    packed = Linear4bit(64, 64, bias=False)
    packed.weight = nn.Parameter(torch.zeros(64 * 64 // 2, 1, dtype=torch.uint8), requires_grad=False)
    base.set_submodule(LAYER, packed)
    with pytest.raises(SQFTError, match=r"matches .*q_proj, a Linear4bit with a quantized weight \(uint8 \[2048, 1\]"):
        get_peft_model(base, make_config(sparse=sparse))


@pytest.mark.parametrize("sparse", [True, False])
def test_an_offloaded_base_is_refused(sparse_llama, tokens, sparse) -> None:
    """The weight is on the meta device outside its own call: what was read there as a mask gave NaN."""
    with pytest.raises(SQFTError, match=r"q_proj is offloaded .* Load the base whole"):
        get_peft_model(cpu_offload(sparse_llama(), execution_device="cpu"), make_config(sparse=sparse))
    later = get_peft_model(sparse_llama(), make_config(sparse=sparse)).eval()
    for layer in later.modules():
        if hasattr(layer, "base_layer"):
            cpu_offload(layer.base_layer, execution_device="cpu")
    with pytest.raises(SQFTError, match=r"a layer under adapter 'default' is offloaded"):
        logits(later, tokens)


def test_what_cannot_be_combined_is_refused_by_name(sparse_llama) -> None:
    model = two_adapters(sparse_llama(), elastic(), config(sparse=False))
    with pytest.raises(SQFTError, match=r"adapters \['default', 'second'\] are masked and dense ones: combine"):
        model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum", combination_type="cat")
    model.add_adapter("third", config(sparse=False, lora_bias=True))
    with pytest.raises(
        SQFTError, match=r"adapters \['second', 'third'\] have lora_bias, which a combination would lose"
    ):
        model.add_weighted_adapter(["second", "third"], [1.0, 1.0], "sum", combination_type="cat")
    model.set_active_rank(4, "default")
    with pytest.raises(SQFTError, match=r"adapter 'default' is at rank 4, .* run set_active_rank\('max', 'default'\)"):
        model.add_weighted_adapter(["default"], [1.0], "sum", combination_type="linear")
    assert set(model.peft_config) == {"default", "second", "third"}
