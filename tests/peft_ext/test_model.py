"""SQFTModel against PEFT's own LoRA and against formulas written here, on a tiny sparse Llama."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers_peft import TARGETS, by_transformers, config, elastic, fill_adapter, logits, sparsify
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model

from peft_ext import Linear, SQFTConfig
from peft_ext.model import sqft_layers
from sqft_plugins.errors import MismatchError, SQFTError

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


# --- merging ---


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


@by_transformers
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


# --- refusals ---


def test_other_layers_and_variants_are_refused(sparse_llama) -> None:
    with pytest.raises(
        SQFTError, match=r"embed_tokens, a Embedding: SQFT adapts linear layers only, .*exclude_modules"
    ):
        get_peft_model(sparse_llama(), config(target_modules=["embed_tokens", "q_proj"]))
    with pytest.raises(ValueError, match="unsupported variant combination: \\('use_dora',\\)"):
        get_peft_model(sparse_llama(), config(use_dora=True))
