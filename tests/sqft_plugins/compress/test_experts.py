"""The experts of a mixture, one linear layer each: views, statistics of their own, folders that stock loaders open."""

import pytest
import torch
from helpers_experts import SMALL, mixtral
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.compress import blocks
from sqft_plugins.compress.experts import Call, between, find_experts, find_routers, visit_experts
from sqft_plugins.compress.prune import prune_folder, prune_model
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.compress.sparsegpt import SparseGPT
from sqft_plugins.compress.wanda import Wanda
from sqft_plugins.inspect.model import inspect_model

TOKENS = torch.arange(128).view(4, 32)


def gpt_oss() -> nn.Module:
    return GptOssForCausalLM(GptOssConfig(**SMALL, head_dim=16, initializer_range=0.1))


def qwen2() -> nn.Module:
    widths = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SMALL, **widths, num_experts=4, num_experts_per_tok=2))


def deepseek() -> nn.Module:
    latent = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
    routed = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
    }
    sizes = SMALL | {"num_key_value_heads": 4}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, **latent, **routed, first_k_dense_replace=1))


def make(build) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def first_experts(model: nn.Module) -> tuple[str, nn.Module]:
    layer = next(iter(find_experts(model).values()))
    return layer.path, layer.experts


def calls_of(model: nn.Module, tokens: torch.Tensor) -> list[tuple]:
    """What the first module of experts is called with, and what it returns."""
    seen = []
    hook = first_experts(model)[1].register_forward_hook(lambda module, args, output: seen.append((args, output)))
    with torch.no_grad():
        model(tokens)
    hook.remove()
    return seen


@pytest.mark.parametrize("build", [mixtral, gpt_oss, qwen2, deepseek])
def test_the_layers_compute_what_their_module_computes(build) -> None:
    model = make(build)
    path, experts = first_experts(model)
    for own in experts.parameters():
        nn.init.normal_(own)  # gpt-oss' biases
    layers = find_experts(model)
    (((hidden, chosen, weights), wanted),) = calls_of(model, TOKENS)
    result = torch.zeros_like(wanted)
    for number in range(4):
        rows, place = torch.where(chosen == number)
        gate = hidden[rows] @ layers[f"{path}.{number}.gate_proj"].weight.t()
        up = hidden[rows] @ layers[f"{path}.{number}.up_proj"].weight.t()
        middle = between(experts, number, hidden[rows]).detach()
        if build is gpt_oss:
            gate, up = gate + experts.gate_up_proj_bias[number][::2], up + experts.gate_up_proj_bias[number][1::2]
            gate, up = gate.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
            torch.testing.assert_close(middle, (up + 1) * gate * torch.sigmoid(gate * experts.alpha))
        else:
            torch.testing.assert_close(middle, experts.act_fn(gate) * up)
        out = middle @ layers[f"{path}.{number}.down_proj"].weight.t()
        out = out + experts.down_proj_bias[number] if build is gpt_oss else out
        result.index_add_(0, rows, out.detach() * weights[rows, place, None])
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [mixtral, gpt_oss, qwen2, deepseek])
def test_each_expert_is_pruned_by_the_tokens_that_reach_it(build) -> None:
    """Wanda's choice by hand, |W| · ‖X‖ within each row, over the inputs that the first experts have at the end: what
    is before them is pruned by then."""
    model, dense = make(build), make(build)
    masks, rows = prune_model(model, TOKENS, Wanda(), 0.5)
    path, experts = first_experts(model)
    before, after = find_experts(dense), find_experts(model)
    (((hidden, chosen, _), _),) = calls_of(model, TOKENS)
    for number in range(4):
        x = hidden[(chosen == number).any(1)]
        assert len(x)
        for part, inputs in [("gate_proj", x), ("up_proj", x), ("down_proj", between(experts, number, x))]:
            name = f"{path}.{number}.{part}"
            weight = before[name].weight
            score = weight.abs() * inputs.detach().norm(dim=0)
            least = score.topk(weight.shape[1] // 2, dim=1, largest=False).indices
            torch.testing.assert_close(after[name].weight, weight.scatter(1, least, 0), rtol=0, atol=0)
    assert all(row["sparsity"] == pytest.approx(0.5) for row in rows)
    assert set(after) <= set(masks)


@pytest.mark.parametrize("build", [mixtral, qwen2])
def test_routers_and_gates_of_shared_experts_stay(build) -> None:
    model = make(build)
    gates = {name: p.clone() for name, p in model.named_parameters() if name.rpartition(".")[0].endswith("gate")}
    masks, _ = prune_model(model, TOKENS, Wanda(), 0.5)
    assert len(gates) == (2 if build is mixtral else 4)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in gates.items())
    assert not any(name.endswith("gate") for name in masks)
    assert len(find_routers(model)) == len(gates)


@pytest.mark.parametrize("pruner", [Wanda, SparseGPT])
def test_micro_batches_change_nothing(pruner, monkeypatch) -> None:
    whole = prune_model(make(qwen2), TOKENS, pruner(), 0.5)[0]
    monkeypatch.setattr(blocks, "MICRO_TOKENS", 32)
    parts = prune_model(make(qwen2), TOKENS, pruner(), 0.5)[0]
    assert whole.keys() == parts.keys()
    same = [torch.equal(whole[name], parts[name]) for name in whole]
    assert sum(same) >= 0.9 * len(same)  # sums in another order turn a choice between equals here and there


def test_experts_that_no_token_reaches_get_the_mean_statistic_of_the_others(capfd) -> None:
    model = make(mixtral)
    path, experts = first_experts(model)
    layers = {name: layer for name, layer in find_experts(model).items() if layer.path == path}
    hidden, chosen = torch.randn(10, 64), torch.tensor([[0, 1]] * 4 + [[1, 3]] * 6)
    seen: dict[str, torch.Tensor] = {}

    def visit(names, statistic) -> None:
        seen.update(dict.fromkeys(names, statistic.value().clone()))

    visit_experts(layers, [Call(hidden[:5], chosen[:5]), Call(hidden[5:], chosen[5:])], "hessian", visit)
    inputs = {0: hidden[:4], 1: hidden, 3: hidden[4:]}
    of = {number: (x.t() @ x, *(y.t() @ y for y in [between(experts, number, x)])) for number, x in inputs.items()}
    for place, part in enumerate(["gate_proj", "down_proj"]):
        for number in inputs:
            torch.testing.assert_close(seen[f"{path}.{number}.{part}"], of[number][place])
        mean = sum(of[number][place] for number in inputs) / 3
        torch.testing.assert_close(seen[f"{path}.2.{part}"], mean)
    assert "no calibration token reaches 1 of 4 experts (such as 2)" in capfd.readouterr().err


def test_single_layers_of_experts_can_be_left_out() -> None:
    names = ["experts.3.down_proj", "experts.gate_up_proj"]  # by name, and all that are in a parameter
    masks, _ = prune_model(make(mixtral), TOKENS, Wanda(), 0.5, exclude=names)
    left = {name.split("experts.")[1] for name in masks if "experts" in name}
    assert left == {"0.down_proj", "1.down_proj", "2.down_proj"}


@pytest.mark.parametrize("build", [mixtral, qwen2, deepseek])
def test_a_folder_is_pruned_and_quantized_and_stock_transformers_opens_it(build, tmp_path, tiny_tokenizer) -> None:
    source, pruned, int4 = (tmp_path / name for name in ("model", "pruned", "int4"))
    make(build).save_pretrained(source)
    tiny_tokenizer("byte-level").save_pretrained(source)
    options = {"sequences": 2, "length": 32}
    report = prune_folder(source, pruned, method="sparsegpt", **options)
    assert report["sparsity_reached"] == pytest.approx(0.5, abs=0.01)
    assert ModelFolder(pruned).files.keys() == ModelFolder(source).files.keys()  # the family's own names
    model = AutoModelForCausalLM.from_pretrained(pruned)
    sparse = find_experts(model)
    assert all(float((layer.weight == 0).float().mean()) == pytest.approx(0.5) for layer in sparse.values())

    report = quantize_folder(pruned, int4, method="gptq", **options)
    folder = ModelFolder(int4)
    assert report["left_out"] == 0
    assert sum(".experts." in name for name in folder.int4.modules) >= len(sparse)
    ours = load_model(int4, dtype=torch.float32)
    stock = AutoModelForCausalLM.from_pretrained(int4, dtype=torch.float32).eval()
    for name, layer in find_experts(ours).items():
        assert torch.equal(layer.weight, find_experts(stock)[name].weight)
        assert not bool((layer.weight[sparse[name].weight == 0] != 0).any())
    with torch.no_grad():
        assert torch.equal(ours(TOKENS).logits, stock(TOKENS).logits)
    layers = inspect_model(folder)["layers"]
    assert sum(row["violations"] for row in layers) == 0
    assert len(layers) == report["modules"]
