"""Matrices that are no linear layers, experts where their form is not known among them: what is left out is told in
numbers, or refused."""

import math
import warnings

import pytest
import torch
from helpers_experts import SMALL, mixtral
from peft import get_peft_model
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    JetMoeConfig,
    JetMoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from peft_ext import SQFTConfig
from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.cli import main
from sqft_plugins.compress.fused import count_of, fused_weights
from sqft_plugins.compress.prune import prune_folder, prune_model
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.compress.wanda import Wanda
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import find_linears

TOKENS = torch.arange(64).view(2, 32)


def gpt_oss() -> nn.Module:
    return GptOssForCausalLM(GptOssConfig(**{**SMALL, "head_dim": 16, "initializer_range": 0.1}))


def granite() -> nn.Module:
    return GraniteMoeForCausalLM(GraniteMoeConfig(**SMALL))


def qwen3() -> nn.Module:
    experts = {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **experts))


def jetmoe() -> nn.Module:
    return JetMoeForCausalLM(JetMoeConfig(**SMALL))


MOE = [mixtral, gpt_oss, granite, qwen3, jetmoe]


def make(build) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


@pytest.mark.parametrize("build", MOE)
def test_experts_and_nothing_else_are_fused(build) -> None:
    model = make(build)
    fused = fused_weights(model)
    others = [name for name, p in model.named_parameters() if p.dim() > 1 and ".layers." in name and name not in fused]
    linear = {f"{name}.weight" for name in find_linears(model)}
    small = [math.prod(model.get_parameter(name).shape) for name in others if name not in linear]
    assert fused
    assert all(name.split(".")[-2] in ("experts", "input_linear", "output_linear") for name in fused)
    assert all(size <= 8 * 128 for size in small)  # routers and biases


def rwkv() -> nn.Module:
    return RwkvForCausalLM(RwkvConfig(vocab_size=64, hidden_size=64, num_hidden_layers=2))


@pytest.mark.parametrize("dense", ["llama", "gemma3", "gpt2", "bloom", "phi3", "opt"])
def test_a_dense_model_has_none(tiny_model, dense) -> None:
    assert fused_weights(tiny_model(dense)) == {}


def test_small_tables_are_none() -> None:
    assert fused_weights(rwkv()) == {}


def test_the_joined_projections_of_torchs_attention_are_fused() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 64, batch_first=True), 2)
    assert set(fused_weights(model)) == {f"layers.{index}.self_attn.in_proj_weight" for index in range(2)}


@pytest.mark.parametrize("build", [jetmoe])
def test_a_sparsity_that_cannot_be_reached_is_refused_before_anything_is_pruned(build) -> None:
    model = make(build)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(
        SQFTError, match=r"^pruning would touch \d+% of the linear weights of .*left out are .*exclude=\["
    ):
        prune_model(model, TOKENS, Wanda(), 0.5)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("build", [mixtral, gpt_oss, jetmoe])
def test_what_is_named_as_left_out_is_left_out(build) -> None:
    from sqft_plugins.compress.fused import ends_of

    model = make(build)
    fused = fused_weights(model)
    before = {name: model.get_parameter(name).clone() for name in fused}
    masks, rows = prune_model(model, TOKENS, Wanda(), 0.5, exclude=ends_of(fused))
    assert set(masks) == set(find_linears(model))
    assert all(row["sparsity"] == pytest.approx(0.5, abs=0.02) for row in rows)
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in fused)


def test_whoever_names_what_is_left_out_is_not_refused() -> None:
    masks, _ = prune_model(make(jetmoe), TOKENS, Wanda(), 0.5, exclude=["input_linear.weight"])
    assert masks


def test_layers_of_a_dense_model_can_be_excluded_in_memory(tiny_model) -> None:
    masks, _ = prune_model(tiny_model("llama"), TOKENS, Wanda(), 0.5, exclude=["down_proj", "v_proj"])
    assert {name.rpartition(".")[2] for name in masks} == {"q_proj", "k_proj", "o_proj", "gate_proj", "up_proj"}
    with pytest.raises(SQFTError, match="exclude 'no_proj' matches no layer"):
        prune_model(tiny_model("llama"), TOKENS, Wanda(), 0.5, exclude=["no_proj"])
    with pytest.raises(SQFTError, match="leaves no layer"):
        prune_model(tiny_model("llama"), TOKENS, Wanda(), 0.5, exclude=[".*"])


# --- folders ---


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    def save(build):
        make(build).save_pretrained(tmp_path / "model")
        tiny_tokenizer("byte-level").save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def test_a_folder_with_experts_is_refused_with_that_reason(folder, tmp_path, capfd) -> None:
    path = folder(gpt_oss)  # which its files hold joined
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["prune", str(path), "--sparsity", "0.5", "--out", str(tmp_path / "out")])
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    assert "pruning would touch 20% of the linear weights" in last
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("build", [mixtral, gpt_oss])
def test_a_folder_with_experts_is_pruned_where_they_are_excluded(folder, tmp_path, build) -> None:
    """Mixtral's files hold them one by one, and have another name for the router; gpt-oss' hold them joined."""
    path = folder(build)
    options = {"sequences": 2, "length": 32}
    if build is gpt_oss:
        with pytest.raises(SQFTError, match=r"would touch 20%.*--exclude experts.gate_up_proj --exclude experts.do"):
            prune_folder(path, tmp_path / "pruned", **options)
    assert not (tmp_path / "pruned").exists()
    names = ["experts.gate_up_proj", "experts.down_proj"]
    report = prune_folder(path, tmp_path / "pruned", exclude=names, **options)
    assert report["sparsity_reached"] == pytest.approx(0.5, abs=0.02)
    assert ModelFolder(tmp_path / "pruned").files.keys() == ModelFolder(path).files.keys()
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", exclude=names)
    assert ModelFolder(tmp_path / "int4").grid is not None
    before, after = make(build).state_dict(), load_model(tmp_path / "int4").state_dict()
    assert all(torch.equal(after[name], before[name]) for name in fused_weights(make(build)))


# --- adapters ---


def adapted(model: nn.Module, targets) -> tuple[int, list[str]]:
    """Trained parameters, and what was said of fused weights."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tuned = get_peft_model(model, SQFTConfig(r=4, target_modules=targets))
    said = [str(warning.message) for warning in told if "no linear layers" in str(warning.message)]
    return sum(p.numel() for p in tuned.parameters() if p.requires_grad), said


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "w1", "w2", "w3"]], ids=str)
def test_an_adapter_that_does_not_reach_the_experts_says_so_in_numbers(targets) -> None:
    model = make(mixtral)
    count = count_of(fused_weights(model))
    trained, (said,) = adapted(model, targets)
    assert trained > 0
    assert f"{count:,} of {count + 24576:,} weights of the blocks (80%)" in said
    assert "which SQFT does not adapt: the adapter is over " in said
    assert ("['w1', 'w2', 'w3'] are no layers here" in said) == (targets != "all-linear")


def qwen2() -> nn.Module:
    config = Qwen2MoeConfig(
        **SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=64
    )
    return Qwen2MoeForCausalLM(config)


def jamba() -> nn.Module:
    config = JambaConfig(
        **SMALL, num_experts=4, num_experts_per_tok=2, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False
    )
    return JambaForCausalLM(config)


@pytest.mark.parametrize("build", [qwen2, jamba])
def test_names_that_reach_some_experts_only_say_so(build) -> None:
    (said,) = adapted(make(build), ["q_proj", "up_proj", "down_proj"])[1]
    assert "target_modules=['down_proj', 'up_proj'] are not all here" in said


@pytest.mark.parametrize("build", [mixtral, gpt_oss, qwen2, jamba])
def test_an_adapter_for_attention_alone_says_nothing(build) -> None:
    assert adapted(make(build), ["q_proj", "v_proj"])[1] == []


def test_nor_does_one_over_a_dense_model(tiny_model) -> None:
    assert adapted(tiny_model("llama"), "all-linear")[1] == []
