"""SQFTModel against PEFT's own LoRA and against formulas written here, on a tiny sparse Llama."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers_peft import TARGETS, fill_adapter, sparsify
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model

from peft_ext import Linear, SQFTConfig
from peft_ext.model import sqft_layers
from sqft_plugins.errors import MismatchError, SQFTError


def config(**changes) -> SQFTConfig:
    return SQFTConfig(**{"r": 8, "lora_alpha": 16, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **changes})


def elastic(**changes) -> SQFTConfig:
    return config(rank_choices=[8, 6, 4], **changes)


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


def zeros(model) -> dict[str, torch.Tensor]:
    return {name: p == 0 for name, p in model.named_parameters() if "layers." in name and p.ndim == 2}


# --- against upstream ---


def test_without_zeros_it_is_peft_lora(tiny_model, tokens) -> None:
    settings = {"r": 8, "lora_alpha": 16, "target_modules": TARGETS}
    with pytest.warns(UserWarning, match=r"only 0.0% of the base's weights are zero"):
        ours = fill_adapter(get_peft_model(tiny_model("llama"), SQFTConfig(**settings)))
    lora = fill_adapter(get_peft_model(tiny_model("llama"), LoraConfig(**settings)))
    torch.testing.assert_close(logits(ours, tokens), logits(lora, tokens), rtol=1e-5, atol=1e-5)
    for model in (ours, lora):
        model.train()
        model(input_ids=tokens, labels=tokens).loss.backward()
    theirs = {name: p.grad for name, p in lora.named_parameters() if p.grad is not None}
    mine = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert set(mine) == set(theirs)
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6)


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


# --- merging ---


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


# --- elastic ranks ---


def sampled(model) -> dict[str, int | None]:
    return {
        name: layer.elastic["default"].ranks.drawn for name, layer in sqft_layers(model.base_model.model, "default")
    }


@pytest.mark.parametrize(("share", "groups"), [("layer", 2), ("module", 10)])
def test_training_draws_a_rank_per_forward_and_group(sparse_llama, tokens, share, groups) -> None:
    model = get_peft_model(sparse_llama(), elastic(share_rank=share)).train()
    seen, blocks = set(), set()
    for seed in range(40):
        torch.manual_seed(seed)
        model(input_ids=tokens)
        ranks = sampled(model)
        seen |= set(ranks.values())
        first = {name: rank for name, rank in ranks.items() if "layers.0." in name}
        blocks.add(len(set(first.values())))
        again = sampled(model)
        assert again == ranks  # stands until the next forward
    assert seen == {8, 6, 4}
    assert (blocks == {1}) == (groups == 2)


def test_evaluation_and_generation_do_not_draw(sparse_llama, tokens) -> None:
    model = fill_adapter(get_peft_model(sparse_llama(), elastic())).train()
    model(input_ids=tokens)
    drawn, seen = sampled(model), []
    assert all(drawn.values())
    model.base_model.model.model.register_forward_pre_hook(lambda *_: seen.extend(sampled(model).values()))
    model.generate(input_ids=tokens, max_new_tokens=2, do_sample=False)  # in training mode, without gradients
    assert set(seen) == {None}
    assert sampled(model) == drawn  # for a backward pass that is still to come
    model.eval()
    model.set_active_rank("min")
    first = logits(model, tokens)
    torch.manual_seed(5)
    assert torch.equal(logits(model, tokens), first)


def test_draws_follow_the_global_seed(sparse_llama, tokens) -> None:
    model = get_peft_model(sparse_llama(), elastic(share_rank="module")).train()
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        run = []
        for _ in range(5):
            model(input_ids=tokens)
            run.append(sampled(model))
        runs.append(run)
    assert runs[0] == runs[1]
    assert len({tuple(step.values()) for step in runs[0]}) > 1


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("interrupted", [False, True], ids=["", "by a forward without gradients"])
def test_gradient_checkpointing_sees_the_same_rank(sparse_llama, tokens, reentrant, interrupted) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = fill_adapter(get_peft_model(sparse_llama(), elastic(share_rank="module"))).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(11)
        loss = model(input_ids=tokens, labels=tokens).loss
        if interrupted:  # as trainers with a reference model do
            with torch.no_grad(), model.disable_adapter():
                model(input_ids=tokens)
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_set_active_rank_takes_numbers_names_and_configurations(sparse_llama, tokens) -> None:
    model = fill_adapter(get_peft_model(sparse_llama(), elastic())).eval()
    outputs = {rank: logits(model, tokens) for rank in ("max", "median", "min") if model.set_active_rank(rank)}
    model.set_active_rank(6)
    assert torch.equal(logits(model, tokens), outputs["median"])
    assert not torch.equal(outputs["max"], outputs["min"])
    ranks = model.set_active_rank({".*layers.0.*": 4, ".*layers.1.*": 8})
    assert ranks["model.layers.0.mlp.up_proj"] == 4
    assert ranks["model.layers.1.mlp.up_proj"] == 8
    with pytest.raises(SQFTError, match=r"rank=5 is outside the search space: use one of \[8, 6, 4\]"):
        model.set_active_rank(5)
    with pytest.raises(SQFTError, match="matches no adapted module"):
        model.set_active_rank({"lm_head": 4})


def test_the_evaluation_cache_follows_the_parameters(sparse_llama, tokens, monkeypatch) -> None:
    model = fill_adapter(get_peft_model(sparse_llama(), config())).eval()
    first = logits(model, tokens)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2)
    second = logits(model, tokens)
    assert not torch.equal(first, second)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data.neg_()  # as PEFT's hotswap writes: past the version counter
    third = logits(model, tokens)
    assert not torch.equal(second, third)
    for layer in dict(sqft_layers(model.base_model.model, "default")).values():
        layer.scaling["default"] = torch.tensor(layer.scaling["default"])  # prepare_model_for_compiled_hotswap
    assert torch.equal(logits(model, tokens), third)
    for layer in dict(sqft_layers(model.base_model.model, "default")).values():
        layer.scaling["default"].mul_(-1)
    torch.testing.assert_close(logits(model, tokens), second, rtol=1e-6, atol=1e-6)
    second = logits(model, tokens)
    monkeypatch.setattr(Linear, "keeps_evaluated", False)
    assert torch.equal(logits(model, tokens), second)
    assert all(layer._cached_weight is None for _, layer in sqft_layers(model.base_model.model, "default"))
    fresh = copy.deepcopy(model)
    for _, layer in sqft_layers(fresh.base_model.model, "default"):
        layer._cached_weight = None
    assert torch.equal(logits(fresh, tokens), second)


# --- saving and loading ---


def test_save_and_load(sparse_llama, tokens, tmp_path) -> None:
    base = sparse_llama()
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    model = fill_adapter(get_peft_model(base, elastic())).eval()
    model.set_active_rank("min")
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(sparse_llama(), tmp_path / "adapter").eval()
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    for again in (loaded, auto):
        assert again.active_peft_config.rank_choices == [8, 6, 4]
        again.set_active_rank("min")
        assert torch.equal(logits(again, tokens), expected)
    low = PeftModel.from_pretrained(sparse_llama(), tmp_path / "adapter", low_cpu_mem_usage=True).eval()
    low.set_active_rank("min")
    assert torch.equal(logits(low, tokens), expected)


def test_transformers_own_add_adapter_draws_ranks_too(sparse_llama, tokens) -> None:
    model = sparse_llama()
    model.add_adapter(elastic())
    model.train()
    model(input_ids=tokens)
    assert all(layer.elastic["default"].ranks.drawn for _, layer in sqft_layers(model, "default"))


def test_another_base_is_refused(sparse_llama, tiny_model, tmp_path) -> None:
    get_peft_model(sparse_llama(), elastic()).save_pretrained(tmp_path)
    other = sparsify(tiny_model("llama"), 0.3)
    with pytest.raises(MismatchError, match="was trained over a base with other zeros"):
        PeftModel.from_pretrained(other, tmp_path)


def test_a_model_and_a_config_can_be_copied(sparse_llama, tokens) -> None:
    settings = elastic()
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert copy.deepcopy(settings) == settings
    model = fill_adapter(get_peft_model(sparse_llama(), settings)).eval()
    expected = logits(model, tokens)
    assert torch.equal(logits(copy.deepcopy(model), tokens), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model)), tokens), expected)


# --- what people do with adapters ---


def test_several_adapters_switch_disable_mix_and_go(sparse_llama, tokens) -> None:
    base = sparse_llama()
    plain = logits(base, tokens)
    model = get_peft_model(base, config())
    model.add_adapter("second", config(r=4, lora_alpha=4))
    fill_adapter(model).eval()
    alone = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        alone[name] = logits(model, tokens)
    assert not torch.equal(alone["default"], alone["second"])
    with model.disable_adapter():
        assert torch.equal(logits(model, tokens), plain)
    with torch.no_grad():
        mixed = model(input_ids=tokens, adapter_names=["default", "second", "__base__"]).logits
    for row, expected in enumerate((alone["default"], alone["second"], plain)):
        torch.testing.assert_close(mixed[row], expected[row], rtol=1e-5, atol=1e-5)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model, tokens)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, tokens), both, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(logits(model, tokens), alone["default"])


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


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_choices": [8, 4], "r": 16}, r"rank_choices=\[8, 4\] has the maximum 8 but r=16: make them equal"),
        ({"rank_choices": []}, r"rank_choices=\[\] is not a search space"),
        ({"rank_choices": [8, 4], "rank_pattern": {"q_proj": 4}}, "rank_pattern cannot be used with rank_choices"),
        ({"share_rank": "block"}, "share_rank='block' is unknown"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base weight"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changes the base weight"),
        (
            {"init_lora_weights": "eva", "rank_choices": [8, 4]},
            "init_lora_weights='eva' cannot be used with rank_choic",
        ),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters=.* is not supported"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes, message) -> None:
    with pytest.raises(SQFTError, match=message):
        config(**changes)


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'rank_choice': did you mean 'rank_choices'"):
        config(rank_choice=[8])


def test_other_layers_and_variants_are_refused(sparse_llama) -> None:
    with pytest.raises(
        SQFTError, match=r"embed_tokens, a Embedding: SQFT adapts linear layers only, .*exclude_modules"
    ):
        get_peft_model(sparse_llama(), config(target_modules=["embed_tokens", "q_proj"]))
    with pytest.raises(ValueError, match="unsupported variant combination: \\('use_dora',\\)"):
        get_peft_model(sparse_llama(), config(use_dora=True))
