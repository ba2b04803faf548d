"""What people do with a LoRA tuner, done with SQFT: patterns, saved modules, precisions, transformers' own API."""

from __future__ import annotations

import json

import pytest
import torch
from helpers_peft import by_transformers, config, elastic, fill_adapter, logits, sparsify, two_adapters
from peft import PeftModel, get_peft_model

from peft_ext import SQFTConfig
from peft_ext.model import sqft_layers
from sqft_plugins.errors import SQFTError
from sqft_plugins.tune.extract import extract_adapter

UP, DOWN, QUERY = (f"model.layers.0.{name}" for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"))


def layers(model, adapter: str = "default") -> dict:
    return dict(sqft_layers(getattr(model, "base_model", model), adapter))


def merged_by_hand(base, model, scaling: dict[str, float], ranks: dict[str, int] | None = None):
    """`base` with scaling · (B @ A) ⊙ (W != 0) added to every adapted weight, each by its own scaling and rank."""
    modules = dict(base.named_modules())
    for name, layer in dict(sqft_layers(model.base_model.model, "default")).items():
        rank = ranks[name] if ranks else None
        A, B = layer.lora_A["default"].weight[:rank], layer.lora_B["default"].weight[:, :rank]
        weight = modules[name].weight.data
        weight += (scaling[name] * (B @ A)).detach().to(weight.dtype) * (weight != 0)
    return base


# --- ranks and scalings ---


def test_rank_and_alpha_patterns_give_each_module_its_own(sparse_llama, tokens) -> None:
    settings = config(rank_pattern={"q_proj": 4, "layers.1.mlp.up_proj": 2}, alpha_pattern={"down_proj": 24})
    model = fill_adapter(get_peft_model(sparse_llama(), settings)).eval()
    found = {
        name: (layer.r["default"], layer.scaling["default"])
        for name, layer in sqft_layers(model.base_model.model, "default")
    }
    assert found[QUERY] == (4, 16 / 4)
    assert found["model.layers.1.mlp.up_proj"] == (2, 16 / 2)
    assert found[UP] == (8, 16 / 8)
    assert found[DOWN] == (8, 24 / 8)
    by_hand = merged_by_hand(sparse_llama(), model, {name: scaling for name, (_, scaling) in found.items()})
    unmerged = logits(model, tokens)
    torch.testing.assert_close(unmerged, logits(by_hand, tokens), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model.merge_and_unload(), tokens), unmerged)


def test_a_fixed_rank_is_not_said_to_be_another(sparse_llama) -> None:
    model = get_peft_model(sparse_llama(), config(rank_pattern={"q_proj": 4}))
    ranks = {name: layer.r["default"] for name, layer in sqft_layers(model.base_model.model, "default")}
    assert model.set_active_rank("max") == model.set_active_rank(ranks) == ranks
    for rank, named in ((4, "8"), (8, "4")):
        with pytest.raises(SQFTError, match=rf"rank={rank} cannot be set: .* has the fixed rank {named} "):
            model.set_active_rank(rank)
    with pytest.raises(SQFTError, match=r"rank=6 is outside the search space: use one of \[8, 4\]"):
        model.set_active_rank(6)


def test_rslora_divides_by_the_root_of_the_largest_rank(sparse_llama, tokens) -> None:
    model = fill_adapter(get_peft_model(sparse_llama(), elastic(use_rslora=True))).eval()
    ranks = model.set_active_rank("min")
    by_hand = merged_by_hand(sparse_llama(), model, dict.fromkeys(ranks, 16 / 8**0.5), ranks)
    torch.testing.assert_close(logits(model, tokens), logits(by_hand, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_an_alpha_pattern_survives_extraction(sparse_llama, tokens, tmp_path, sparse) -> None:
    settings = elastic(alpha_pattern={"down_proj": 24, "layers.1.self_attn.q_proj": 4}, sparse=sparse)
    model = fill_adapter(get_peft_model(sparse_llama(), settings)).eval()
    model.save_pretrained(tmp_path / "super")
    for rank in ("median", {r".*layers\.0\..*": 4, r".*layers\.1\..*": 8}):
        model.set_active_rank(rank)
        extract_adapter(tmp_path / "super", tmp_path / "sub", rank, overwrite=True)
        loaded = PeftModel.from_pretrained(sparse_llama(), tmp_path / "sub").eval()
        # stock LoRA computes two thin GEMMs: float32 sums in another order
        torch.testing.assert_close(logits(loaded, tokens), logits(model, tokens), rtol=1e-5, atol=1e-5)


# --- which modules ---


def test_layers_to_transform_and_exclude_modules(sparse_llama, tokens) -> None:
    settings = config(layers_to_transform=[1], exclude_modules=["down_proj"])
    model = fill_adapter(get_peft_model(sparse_llama(), settings)).eval()
    names = {name for name, _ in sqft_layers(model.base_model.model, "default")}
    assert names == {f"model.layers.1.self_attn.{n}_proj" for n in "qkv"} | {"model.layers.1.mlp.up_proj"}
    unmerged = logits(model, tokens)
    assert torch.equal(logits(model.merge_and_unload(), tokens), unmerged)


def test_modules_to_save_are_trained_and_saved_whole(sparse_llama, tokens, tmp_path) -> None:
    model = fill_adapter(get_peft_model(sparse_llama(), elastic(modules_to_save=["lm_head"])))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    expected = logits(model.eval(), tokens)
    assert not torch.equal(model.get_output_embeddings().weight, sparse_llama().lm_head.weight)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(sparse_llama(), tmp_path).eval()
    assert torch.equal(logits(loaded, tokens), expected)
    assert torch.equal(logits(loaded.merge_and_unload(), tokens), expected)


def test_a_tied_head_is_adapted_with_a_word_about_merging(tiny_model, tokens) -> None:
    base = sparsify(tiny_model("gemma3")).float()
    head = base.lm_head.weight
    head.data[torch.rand(head.shape, generator=torch.Generator().manual_seed(5)) < 0.5] = 0
    assert head is base.get_input_embeddings().weight
    with pytest.warns(UserWarning, match=r"tied"):
        model = get_peft_model(base, config(target_modules=["q_proj", "lm_head"]))
    fill_adapter(model).eval()
    before = base.get_input_embeddings().weight.clone()
    assert "lm_head" in layers(model.base_model.model) or any(n.endswith("lm_head") for n in layers(model))
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(base.get_input_embeddings().weight, before)


# --- precisions ---


# --- several adapters ---


def test_disabling_unmerges_and_deleting_the_last_leaves_the_base(sparse_llama, tokens) -> None:
    base = sparse_llama()
    plain = logits(base, tokens)
    model = two_adapters(base, elastic(), config(r=4))
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model, tokens), plain)
    model.delete_adapter("default")
    assert model.active_adapters == ["second"]
    assert all("default" not in layer.elastic for layer in layers(model, "second").values())
    model.delete_adapter("second")
    assert torch.equal(logits(base, tokens), plain)  # PeftModel itself wants an adapter to call


def test_a_mixed_batch_follows_each_adapters_own_rank(sparse_llama, tokens) -> None:
    model = two_adapters(sparse_llama(), elastic(), elastic(lora_alpha=4))
    model.set_active_rank("min", "default")
    model.set_active_rank("median", "second")
    alone = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        alone[name] = logits(model, tokens)
    with torch.no_grad():
        mixed = model(input_ids=tokens, adapter_names=["second", "default", "second"]).logits
    for row, name in enumerate(["second", "default", "second"]):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-5, atol=1e-5)


def weights_by_hand(base, model, weights: dict[str, float]):
    """`base` with Σ weight · s · (B @ A) ⊙ (W != 0) over the adapters added to its weights."""
    modules = {name: module.weight for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    masks = {name: weight != 0 for name, weight in modules.items()}
    for adapter, factor in weights.items():
        for name, layer in sqft_layers(model.base_model.model, adapter):
            delta = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight
            modules[name].data += (factor * layer.scaling[adapter] * delta * masks[name]).detach()
    return base


def rslora(**changes) -> SQFTConfig:
    return config(use_rslora=True, **changes)


@pytest.mark.parametrize("first", [config, elastic, rslora])
def test_concatenating_adapters_is_their_exact_weighted_sum(sparse_llama, tokens, first) -> None:
    second = config(r=4, lora_alpha=4, target_modules=["q_proj", "gate_proj"])
    model = two_adapters(sparse_llama(), first(), second)
    model.add_weighted_adapter(["default", "second"], [0.7, -0.4], "sum", combination_type="cat")
    model.set_adapter("sum")
    assert model.peft_config["sum"].r == 12
    assert model.peft_config["sum"].rank_choices is None
    assert model.peft_config["default"] == first(mask_hash=model.peft_config["default"].mask_hash)
    by_hand = weights_by_hand(sparse_llama(), model, {"default": 0.7, "second": -0.4})
    unmerged = logits(model, tokens)
    torch.testing.assert_close(unmerged, logits(by_hand, tokens), rtol=1e-5, atol=1e-5)
    zeros = {n: p == 0 for n, p in sparse_llama().named_parameters()}
    merged = model.merge_and_unload()
    assert torch.equal(logits(merged, tokens), unmerged)
    assert all(bool((p == 0)[zeros[n]].all()) for n, p in merged.named_parameters())


def test_svd_of_full_rank_is_the_weighted_sum(sparse_llama, tokens) -> None:
    """A masked delta has full rank, so only an SVD of full rank keeps all of it; smaller ones approximate."""
    model = two_adapters(sparse_llama(), config(target_modules=["q_proj"]), config(target_modules=["q_proj"]))
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "sum", combination_type="svd", svd_rank=64)
    model.set_adapter("sum")
    by_hand = weights_by_hand(sparse_llama(), model, {"default": 0.5, "second": 0.5})
    torch.testing.assert_close(logits(model, tokens), logits(by_hand, tokens), rtol=1e-4, atol=1e-4)


# --- transformers' own API ---


@by_transformers
def test_transformers_add_save_load_and_switch(sparse_llama, tokens, tmp_path) -> None:
    model = sparse_llama()
    plain = logits(model, tokens)
    model.add_adapter(elastic(), adapter_name="first")
    model.add_adapter(config(r=4), adapter_name="second")
    fill_adapter(model).eval()
    alone = {}
    for name in ("first", "second"):
        model.set_adapter(name)
        alone[name] = logits(model, tokens)
        model.save_pretrained(tmp_path / name)
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["peft_type"] == "SQFT"
    assert not torch.equal(alone["first"], alone["second"])
    model.disable_adapters()
    assert torch.equal(logits(model, tokens), plain)
    fresh = sparse_llama()
    for name in ("first", "second"):
        fresh.load_adapter(str(tmp_path / name), adapter_name=name)
    fresh.eval()
    for name in ("first", "second"):
        fresh.set_adapter(name)
        assert torch.equal(logits(fresh, tokens), alone[name])


# --- refusals ---


def test_a_rank_of_an_unknown_adapter_or_a_wrong_word_is_refused(sparse_llama) -> None:
    model = get_peft_model(sparse_llama(), elastic())
    with pytest.raises(SQFTError, match=r"adapter_name='third' is not an SQFT adapter here: use one of \['default'\]"):
        model.set_active_rank(4, "third")
    with pytest.raises(SQFTError, match="rank='largest' is not a rank: use a number, r16, heuristic, max, median, min"):
        model.set_active_rank("largest")
