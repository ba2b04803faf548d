"""The adapted layer against formulas written here: evaluated, merged and unmerged, in each precision."""

from __future__ import annotations

import pytest
import torch
from helpers_peft import config, elastic, fill_adapter, logits, two_adapters
from peft import get_peft_model

from peft_ext.model import sqft_layers

UP, DOWN, QUERY = (f"model.layers.0.{name}" for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"))


def layers(model, adapter: str = "default") -> dict:
    return dict(sqft_layers(getattr(model, "base_model", model), adapter))


def zeros(model) -> dict[str, torch.Tensor]:
    return {name: p == 0 for name, p in model.named_parameters() if "layers." in name and p.ndim == 2}


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_evaluation_equals_the_naive_formula(sparse_llama, tokens, sparse, dropout) -> None:
    model = fill_adapter(get_peft_model(sparse_llama(), elastic(sparse=sparse, lora_dropout=dropout)))
    model.set_active_rank(6)
    naive = sparse_llama()
    modules = dict(naive.named_modules())
    for name, layer in sqft_layers(model.base_model.model, "default"):
        A, B = layer.lora_A["default"].weight[:6], layer.lora_B["default"].weight[:, :6]
        weight = modules[name].weight
        delta = 16 / 8 * (B @ A)  # alpha over the largest rank, whatever the active one
        weight.data += (delta * (weight != 0) if sparse else delta).detach()
    torch.testing.assert_close(logits(model.eval(), tokens), logits(naive, tokens), rtol=1e-5, atol=1e-5)


def test_merge_keeps_zeros_and_logits_and_unmerge_restores_every_bit(sparse_llama, tokens) -> None:
    base = sparse_llama()
    before, pruned = {n: p.clone() for n, p in base.named_parameters()}, zeros(base)
    model = fill_adapter(get_peft_model(base, elastic())).eval()
    model.set_active_rank("median")
    unmerged = logits(model, tokens)
    training_path = model(input_ids=tokens).logits  # with gradients on: the one that is trained
    torch.testing.assert_close(training_path, unmerged, rtol=1e-6, atol=1e-6)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, tokens), unmerged, rtol=1e-6, atol=1e-6)
    model.unmerge_adapter()
    restored = {
        n.replace(".base_layer", ""): p for n, p in model.base_model.model.named_parameters() if "lora_" not in n
    }
    assert all(torch.equal(restored[name], before[name]) for name in before)
    merged = model.merge_and_unload(safe_merge=True)
    assert torch.equal(logits(merged, tokens), unmerged)
    changed = zeros(merged)
    assert all(torch.equal(changed[name], pruned[name]) for name in pruned)
    assert any(not torch.equal(p, before[n]) for n, p in merged.named_parameters())
    assert not merged._forward_pre_hooks
    assert not list(sqft_layers(merged, "default"))


def test_a_dense_merge_fills_the_zeros(sparse_llama) -> None:
    base = sparse_llama()
    pruned = zeros(base)
    merged = fill_adapter(get_peft_model(base, config(sparse=False))).merge_and_unload()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not (zeros(merged)[name] & pruned[name]).any()


def test_the_mask_is_that_of_the_unmerged_base(sparse_llama) -> None:
    model = fill_adapter(get_peft_model(sparse_llama(), config()))
    before = model.base_model.masks()
    model.merge_adapter()
    layer = dict(sqft_layers(model.base_model.model, "default"))["model.layers.0.self_attn.q_proj"]
    layer.get_base_layer().weight.data[before["model.layers.0.self_attn.q_proj"]] *= 0  # a merge may hit zero
    after = model.base_model.masks()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_bfloat16_merges_to_what_it_evaluates(sparse_llama, tokens) -> None:
    model = fill_adapter(get_peft_model(sparse_llama().to(torch.bfloat16), config())).eval()
    unmerged = logits(model, tokens)
    assert torch.equal(logits(model.merge_and_unload(), tokens), unmerged)


def test_conv1d_models(tiny_model, tokens) -> None:
    base = tiny_model("gpt2")
    for name, parameter in base.named_parameters():
        if "c_attn.weight" in name or "c_proj.weight" in name:
            parameter.data[::2] = 0
    pruned = {n: p == 0 for n, p in base.named_parameters() if "c_attn.weight" in n}
    model = fill_adapter(get_peft_model(base, elastic(target_modules=["c_attn", "c_proj"]))).eval()
    model.set_active_rank(4)
    unmerged = logits(model, tokens)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, tokens), unmerged, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(p == 0, pruned[n]) for n, p in merged.named_parameters() if n in pruned)


def test_a_training_step_under_autocast(sparse_llama, tokens) -> None:
    model = get_peft_model(sparse_llama().to(torch.bfloat16), elastic(lora_dropout=0.1)).train()
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=tokens, labels=tokens).loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_training_step_in_each_precision(sparse_llama, tokens, dtype, sparse) -> None:
    base = sparse_llama().to(dtype)
    model = get_peft_model(base, elastic(sparse=sparse)).train()
    adapter_dtypes = {p.dtype for n, p in model.named_parameters() if "lora_" in n}
    assert adapter_dtypes == {torch.float32}  # as LoRA does: adapters of a half-precision base train in float32
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        model(input_ids=tokens, labels=tokens).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if "lora_B" in n}
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_merge_in_each_precision_is_what_was_evaluated(sparse_llama, tokens, dtype) -> None:
    base = sparse_llama().to(dtype)
    zeros = {n: p == 0 for n, p in base.named_parameters()}
    original = {n: p.clone() for n, p in base.named_parameters()}
    model = fill_adapter(get_peft_model(base, elastic(), autocast_adapter_dtype=False)).eval()
    assert {p.dtype for p in model.parameters()} == {dtype}
    unmerged = logits(model, tokens)
    model.merge_adapter(safe_merge=True)
    assert torch.equal(logits(model, tokens), unmerged)
    model.unmerge_adapter()
    for name, p in base.named_parameters():
        if "lora_" not in name:
            assert torch.equal(p, original[name.replace(".base_layer", "")])
    merged = model.merge_and_unload()
    assert torch.equal(logits(merged, tokens), unmerged)
    assert all(bool((p == 0)[zeros[n]].all()) for n, p in merged.named_parameters())


def test_an_adapter_of_other_layers_keeps_no_copy_of_this_one(sparse_llama) -> None:
    model = two_adapters(sparse_llama(), config(target_modules=["q_proj"]), config(target_modules=["up_proj"]))
    model.merge_adapter(["second"])
    layer = layers(model)["model." + QUERY]
    layer.get_base_layer().weight.data.mul_(2)  # a weight loaded into the base after it, say
    assert torch.equal(layer.unmerged_weight(), layer.get_base_layer().weight)


def test_safe_merge_refuses_a_broken_adapter(sparse_llama) -> None:
    model = fill_adapter(get_peft_model(sparse_llama(), config()))
    weight = layers(model)["model.model.layers.0.mlp.up_proj"].lora_B["default"].weight
    weight.data[0, 0] = float("nan")
    base = layers(model)["model.model.layers.0.mlp.up_proj"].get_base_layer().weight.clone()
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        model.merge_adapter(safe_merge=True)
    layer = layers(model)["model.model.layers.0.mlp.up_proj"]
    assert torch.equal(layer.get_base_layer().weight, base)
    layer.get_base_layer().weight.data.mul_(2)
    assert torch.equal(layer.unmerged_weight(), base * 2)  # no copy is left that a later unmerge would put back


def test_merging_two_adapters_and_back_restores_every_bit(sparse_llama, tokens) -> None:
    base = sparse_llama()
    original = {n: p.clone() for n, p in base.named_parameters()}
    zeros = {n: p == 0 for n, p in original.items()}
    model = two_adapters(base, elastic(), config(r=4, lora_alpha=4, target_modules=["q_proj", "gate_proj"]))
    model.base_model.set_adapter(["default", "second"])
    both = logits(model, tokens)
    model.merge_adapter(["default"])
    model.merge_adapter(["second"])
    torch.testing.assert_close(logits(model, tokens), both, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    for name, p in base.named_parameters():
        if "lora_" not in name:
            assert torch.equal(p, original[name.replace(".base_layer", "")])
    merged = model.merge_and_unload(adapter_names=["default", "second"])
    assert all(bool((p == 0)[zeros[n]].all()) for n, p in merged.named_parameters())


@pytest.mark.parametrize("merged", ["default", "second"])
def test_the_other_of_two_active_adapters_acts_on_beside_a_merged_one(sparse_llama, tokens, merged) -> None:
    """PEFT's own layers fall silent: https://github.com/huggingface/peft, LoraLayer.forward where `self.merged`."""
    model = two_adapters(sparse_llama(), elastic(), config(r=4, sparse=False, target_modules=["q_proj", "gate_proj"]))
    model.base_model.set_adapter(["default", "second"])
    both = logits(model, tokens)
    model.merge_adapter([merged])
    torch.testing.assert_close(logits(model, tokens), both, rtol=1e-5, atol=1e-5)
    model.train()
    model(input_ids=tokens, labels=tokens).loss.backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and "lora_B" in n and "q_proj" in n}
    assert {name.split(".")[-2] for name in trained} == {"default", "second"} - {merged}
    model.eval().unmerge_adapter()
    assert torch.equal(logits(model, tokens), both)


def test_a_delta_is_that_of_the_chosen_rank_also_after_a_training_step(sparse_llama, tokens) -> None:
    """Which `add_weighted_adapter` combines; the step has drawn another rank."""
    model = fill_adapter(get_peft_model(sparse_llama(), elastic())).train()
    layer = layers(model)["model.model.layers.0.mlp.up_proj"]
    whole = layer.get_delta_weight("default")
    for seed in range(10):
        torch.manual_seed(seed)
        model(input_ids=tokens)
        assert torch.equal(layer.get_delta_weight("default"), whole)
    model.set_active_rank(4)
    assert not torch.equal(layer.get_delta_weight("default"), whole)
