"""Adding an adapter: refused ones leave nothing, configurations serve again, weights that cannot be read are named."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from helpers_peft import fill_adapter, sparsify
from helpers_training import make_config
from peft import get_peft_model
from torch import nn

from sqft_plugins.errors import MismatchError, SQFTError

LAYER = "model.layers.0.self_attn.q_proj"


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


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


def test_one_configuration_serves_for_several_bases(sparse_llama, tiny_model) -> None:
    settings = make_config()
    models = [get_peft_model(base, settings) for base in (sparse_llama(), sparsify(tiny_model("llama"), 0.3))]
    hashes = [model.active_peft_config.mask_hash for model in models]  # each its own
    alone = [get_peft_model(base, make_config()) for base in (sparse_llama(), sparsify(tiny_model("llama"), 0.3))]
    assert hashes == [model.active_peft_config.mask_hash for model in alone]
    assert hashes[0] != hashes[1]


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


def test_a_base_made_in_inference_mode_is_evaluated(sparse_llama, tokens) -> None:
    with torch.inference_mode():
        base = sparse_llama()
    model = fill_adapter(get_peft_model(base, make_config())).eval()
    expected = fill_adapter(get_peft_model(sparse_llama(), make_config())).eval()
    assert torch.equal(logits(model, tokens), logits(expected, tokens))
