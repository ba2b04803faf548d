"""Every model family under SQFT: over a dense base it is LoRA, over a pruned base its merge keeps zeros and logits."""

from __future__ import annotations

import pytest
import torch
from helpers_peft import fill_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_ext import SQFTConfig
from peft_ext.model import sqft_layers
from sqft_plugins.errors import SQFTError

FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3", "gemma3", "opt", "bloom", "gpt2", "mamba", "gemma3-vision")


@pytest.fixture(params=FAMILIES)
def build(request, tiny_model):
    """`build()` → the family's tiny model in float32, always the same weights."""
    name = request.param
    if name == "mamba":
        return tiny_mamba
    if name == "gemma3-vision":
        return tiny_vision_language_model
    return lambda: tiny_model(name).float()


def tiny_mamba() -> nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    settings = {"vocab_size": 640, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0}
    return MambaForCausalLM(MambaConfig(**settings, bos_token_id=2, eos_token_id=1)).eval()


def tiny_vision_language_model() -> nn.Module:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": 640, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 32, "query_pre_attn_scalar": 8,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=639, pad_token_id=0
    )
    return Gemma3ForConditionalGeneration(config).eval()


def inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    tokens = torch.randint(4, 600, (2, 12), generator=torch.Generator().manual_seed(3))
    if not hasattr(model.config, "vision_config"):
        return {"input_ids": tokens}
    tokens[:, 2:6] = model.config.image_token_index
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(4))
    image = (tokens == model.config.image_token_index).long()
    return {"input_ids": tokens, "pixel_values": pixels, "token_type_ids": image}


def prune(model: nn.Module) -> nn.Module:
    """Half of the weights of every linear but the head zero."""
    generator = torch.Generator().manual_seed(1)
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            module.weight.data[torch.rand(module.weight.shape, generator=generator) < 0.5] = 0
    return model


def dense(model: nn.Module) -> nn.Module:
    """No weight zero: drawn in bfloat16, one in 200 of torch 2.10's normal numbers is."""
    for parameter in model.parameters():
        parameter.data[parameter == 0] = 1e-3
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(model)).logits


def targets(model: nn.Module) -> dict:
    """All linears, but in a Mamba block only the one that is called as a module."""
    if model.config.model_type == "mamba":
        return {"target_modules": "all-linear", "exclude_modules": ["x_proj", "dt_proj", "out_proj"]}
    return {"target_modules": "all-linear"}


def elastic(model: nn.Module) -> SQFTConfig:
    return SQFTConfig(r=8, lora_alpha=16, rank_choices=[8, 6, 4], **targets(model))


@pytest.mark.filterwarnings("ignore:sparse=True but only")  # a dense base is the point of the test
def test_over_a_dense_base_it_is_lora(build) -> None:
    settings = {"r": 8, "lora_alpha": 16, **targets(build())}
    ours = fill_adapter(get_peft_model(dense(build()), SQFTConfig(**settings)))
    lora = fill_adapter(get_peft_model(dense(build()), LoraConfig(**settings)))
    adapted = {name for name, _ in sqft_layers(ours.base_model.model, "default")}
    theirs = {name for name, module in lora.base_model.model.named_modules() if hasattr(module, "lora_A")}
    # LoRA puts an adapter there that torch's attention never asks
    assert adapted == theirs - {"model.vision_tower.head.attention.out_proj"}
    torch.testing.assert_close(logits(ours), logits(lora), rtol=1e-5, atol=1e-5)
    for model in (ours, lora):
        model(**inputs(model)).logits.square().mean().backward()
    gradients = {name: p.grad for name, p in lora.named_parameters() if p.grad is not None}
    mine = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert set(mine) == set(gradients)
    for name, gradient in gradients.items():  # float32 sums in another order
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6)


def test_over_a_pruned_base_merging_keeps_zeros_and_logits(build, tmp_path) -> None:
    base = prune(build())
    zeros = {name: p == 0 for name, p in base.named_parameters()}
    before = logits(base)
    model = fill_adapter(get_peft_model(base, elastic(base))).eval()
    assert set(model.set_active_rank("median").values()) == {6}
    unmerged = logits(model)
    assert not torch.allclose(unmerged, before, atol=1e-3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(prune(build()), tmp_path).eval()
    loaded.set_active_rank("median")
    assert torch.equal(logits(loaded), unmerged)
    merged = model.merge_and_unload()
    # the very same weights in the very same layers; only Conv1D adds its bias in another place
    torch.testing.assert_close(logits(merged), unmerged, rtol=1e-6, atol=1e-6)
    after = {name: p == 0 for name, p in merged.named_parameters()}
    assert set(after) == set(zeros)
    assert all(bool((after[name] | ~zeros[name]).all()) for name in zeros)


def test_ranks_change_what_every_family_computes(build) -> None:
    base = prune(build())
    model = fill_adapter(get_peft_model(base, elastic(base))).eval()
    outputs = []
    for rank in (8, 6, 4):
        model.set_active_rank(rank)
        outputs.append(logits(model))
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert not torch.allclose(outputs[1], outputs[2], atol=1e-4)


def test_default_target_modules_are_those_of_lora(build) -> None:
    model = prune(build())
    kind = model.config.model_type
    if kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        with pytest.raises(ValueError, match="Please specify `target_modules`"):
            get_peft_model(model, SQFTConfig())
        return
    ours = get_peft_model(model, SQFTConfig())
    lora = get_peft_model(build(), LoraConfig())
    assert {name for name, _ in sqft_layers(ours.base_model.model, "default")} == {
        name for name, module in lora.base_model.model.named_modules() if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("module", ["x_proj", "dt_proj", "out_proj"])
def test_weights_that_a_mamba_block_reads_itself_are_refused(module) -> None:
    with pytest.raises(SQFTError, match=rf"target_modules matches {module}: mamba reads that weight itself, .*exclude"):
        get_peft_model(prune(tiny_mamba()), SQFTConfig(target_modules=["in_proj", module]))


def test_an_adapter_on_such_a_weight_would_do_nothing() -> None:
    """Why they are refused: stock LoRA attaches to dt_proj, and the model computes as before."""
    base = tiny_mamba()
    before = logits(base)
    assert torch.equal(logits(fill_adapter(get_peft_model(base, LoraConfig(target_modules=["dt_proj"])))), before)
