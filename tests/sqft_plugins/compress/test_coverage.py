"""What part of a model a step touches, and what is refused because it would be little."""

from __future__ import annotations

import pytest
import torch
from helpers_wrappers import wrapper
from torch import nn
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, MixtralConfig, MixtralForCausalLM

from sqft_plugins.compress.coverage import coverage_of, describe
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import find_linears


def test_all_layers_of_a_dense_model_are_all_of_its_linear_weights(tiny_model, family) -> None:
    model = tiny_model(family)
    linears = find_linears(model)
    coverage = coverage_of(model, linears)
    assert coverage.touched == sum(linear.weight.numel() for linear in linears.values())
    assert coverage.share == 1
    assert coverage.left == {}
    assert coverage.beside == {}
    assert coverage.model == sum(parameter.numel() for parameter in model.parameters())


def test_what_is_left_out_is_counted_by_kind(tiny_model) -> None:
    model = tiny_model("llama")
    chosen = [name for name in find_linears(model) if not name.endswith("down_proj")]
    coverage = coverage_of(model, chosen)
    assert coverage.left == {"mlp.down_proj": 2 * 64 * 128}
    assert coverage.share == coverage.touched / (coverage.touched + 2 * 64 * 128)
    assert f"not touched: mlp.down_proj {1 - coverage.share:.1%}" in describe(coverage.as_dict())


def test_experts_are_linear_weights() -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    coverage = coverage_of(model, find_linears(model))
    assert coverage.left == {"mlp.experts.gate_up_proj": 2 * 4 * 128 * 64, "mlp.experts.down_proj": 2 * 4 * 64 * 64}
    with pytest.raises(
        SQFTError, match=r"pruning would touch 20% of .* mlp.experts.gate_up_proj 53.*--exclude experts"
    ):
        coverage.check("pruning", "m", "--exclude")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma4"])
def test_a_tower_is_said_and_does_not_count(family) -> None:
    model = wrapper(family)
    coverage = coverage_of(model, find_linears(model))
    text = sum(p.numel() for name, p in model.named_parameters() if "language_model" in name or "lm_head" in name)
    assert sum(coverage.beside.values()) == coverage.model - text > 0
    assert coverage.share > 0.9


def test_the_sparsity_of_the_whole_model_is_said_beside_that_of_the_layers(tiny_llama, tmp_path) -> None:
    report = prune_folder(tiny_llama, tmp_path / "out", method="magnitude", sparsity=0.5)
    assert report["sparsity_reached"] == 0.5
    assert report["sparsity_of_model"] == 0.5 * report["weights"] / report["coverage"]["model"]
    assert report["coverage"]["touched"] == report["weights"]


def test_small_layers_that_no_group_divides_stay_float(tmp_path, tiny_tokenizer, capfd) -> None:
    config = Gemma3nTextConfig(
        vocab_size=640, vocab_size_per_layer_input=640, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_size_per_layer_input=32, laurel_rank=32,
        num_kv_shared_layers=0, altup_num_inputs=2, activation_sparsity_pattern=[0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module = Gemma3nForCausalLM(config)
    model.save_pretrained(tmp_path / "m")
    tiny_tokenizer("byte-level").save_pretrained(tmp_path / "m")
    report = quantize_folder(tmp_path / "m", tmp_path / "int4")
    said = capfd.readouterr().err
    assert "group_size=32 does not divide the inputs of 4 small layers (altup.correction_coefs, altup.pred" in said
    assert "altup.correction_coefs" in report["coverage"]["left"]


def test_a_group_that_divides_hardly_any_layer_is_refused(tiny_llama, tmp_path) -> None:
    with pytest.raises(SQFTError, match=r"group_size=48 does not divide in=64"):
        quantize_folder(tiny_llama, tmp_path / "int4", group_size=48)
