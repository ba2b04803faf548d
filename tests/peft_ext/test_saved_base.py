"""Weights that stand in two places (tied tensors, replicated blocks, one module under two names): a merge changes the
place of its adapter only, and an unmerge puts back the very tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers_peft import fill_adapter, sparsify
from peft import get_peft_model
from torch import nn
from torch.nn.utils import prune

from peft_ext import SQFTConfig
from peft_ext.model import sqft_layers
from sqft_plugins.errors import SQFTError

WIDTH = 16


class TwoLayers(nn.Module):
    """Two linears, half of their weights zero; `tie` makes them share."""

    def __init__(self, tie: Callable[[TwoLayers], None] = lambda net: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        for layer in (self.a, self.b):
            layer.weight.data[:, ::2] = 0
        tie(self)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def one_parameter(net: TwoLayers) -> None:
    net.b.weight = net.a.weight


def one_storage(net: TwoLayers) -> None:
    net.b.weight = nn.Parameter(net.a.weight.data)


def views_of_one(net: TwoLayers) -> None:
    fused = torch.cat([net.a.weight.data, net.b.weight.data[: WIDTH // 2]])
    net.a.weight, net.b.weight = nn.Parameter(fused[:WIDTH]), nn.Parameter(fused[WIDTH // 2 :])


def one_bias(net: TwoLayers) -> None:
    net.b.bias = net.a.bias


def one_module(net: TwoLayers) -> None:
    net.b = net.a


TIES = [one_parameter, one_storage, views_of_one, one_bias, one_module]


def attach(net: nn.Module, **changes):
    settings = {"r": 4, "target_modules": ["a", "b"], "init_lora_weights": False, **changes}
    return fill_adapter(get_peft_model(net, SQFTConfig(**settings)), 0.3).eval()


def output(model, x):
    with torch.no_grad():
        return model(x).clone()


@pytest.mark.parametrize("changes", [{}, {"sparse": False}, {"lora_bias": True}], ids=["masked", "dense", "bias"])
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("targets", [["a"], ["b"], ["a", "b"]], ids="".join)
@pytest.mark.parametrize("tie", TIES)
def test_a_merge_of_shared_weights_is_the_unmerged_model(tie, targets, safe, changes) -> None:
    if tie is one_module and targets == ["b"]:
        pytest.skip("PEFT knows the module by its first name")
    net, x = TwoLayers(tie), torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    before, parameters = copy.deepcopy(net.state_dict()), (net.a.weight, net.b.weight, net.a.bias, net.b.bias)
    model = attach(net, target_modules=targets, **changes)
    unmerged = output(model, x)
    for _ in range(2):
        model.merge_adapter(safe_merge=safe)
        torch.testing.assert_close(output(model, x), unmerged, rtol=1e-6, atol=1e-6)
        model.unmerge_adapter()
        a, b = (getattr(layer, "base_layer", layer) for layer in (net.a, net.b))
        assert all(now is then for now, then in zip((a.weight, b.weight, a.bias, b.bias), parameters, strict=True))
        assert torch.equal(output(model, x), unmerged)
    merged = model.merge_and_unload(safe_merge=safe)
    torch.testing.assert_close(output(merged, x), unmerged, rtol=1e-6, atol=1e-6)
    for name in {"a", "b"} - set(targets):
        if tie is not one_module:
            assert torch.equal(getattr(merged, name).weight, before[f"{name}.weight"])


def test_one_of_two_that_share_is_merged_alone() -> None:
    net, x = TwoLayers(one_parameter), torch.randn(4, WIDTH)
    model = attach(net)
    unmerged = output(model, x)
    net.a.merge()
    torch.testing.assert_close(output(model, x), unmerged, rtol=1e-6, atol=1e-6)
    net.b.merge()
    net.a.unmerge()
    torch.testing.assert_close(output(model, x), unmerged, rtol=1e-6, atol=1e-6)
    net.b.unmerge()
    assert net.a.base_layer.weight is net.b.base_layer.weight


def test_a_merged_model_that_is_cast_and_copied_comes_back_as_cast() -> None:
    net = TwoLayers(one_parameter)
    weight = net.a.weight.detach().clone()
    model = attach(net)
    model.merge_adapter()
    model.to(torch.float64)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        each.unmerge_adapter()
        inner = each.base_model.model
        assert inner.a.base_layer.weight is inner.b.base_layer.weight
        assert torch.equal(inner.a.base_layer.weight, weight.double())


def test_a_tied_head_is_merged_without_the_embedding(tiny_model, tokens, tmp_path) -> None:
    base = sparsify(tiny_model("gemma3")).float()
    head = base.lm_head.weight
    head.data[torch.rand(head.shape, generator=torch.Generator().manual_seed(5)) < 0.5] = 0
    embedding = head.detach().clone()
    settings = SQFTConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    with pytest.warns(UserWarning, match="tied"):
        model = fill_adapter(get_peft_model(base, settings)).eval()
    unmerged = model(input_ids=tokens).logits.detach()
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=tokens).logits, unmerged, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    assert base.get_output_embeddings().base_layer.weight is base.get_input_embeddings().weight
    with pytest.warns(UserWarning, match="no longer tied"):
        merged = model.merge_and_unload()
    assert torch.equal(merged.get_input_embeddings().weight, embedding)
    merged.save_pretrained(tmp_path)
    loaded = type(base).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=tokens).logits, unmerged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_replicated_blocks_have_one_base_and_adapters_of_their_own(sparse_llama, tokens, sparse) -> None:
    settings = SQFTConfig(
        r=4, target_modules=["q_proj", "up_proj"], layer_replication=[(0, 2), (1, 2)], sparse=sparse,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = fill_adapter(get_peft_model(sparse_llama(), settings), 0.3).eval()
    layers = dict(sqft_layers(model.base_model.model, "default"))
    assert len(layers) == 6
    with torch.no_grad():
        unmerged = model(input_ids=tokens).logits
        model.merge_adapter()
        torch.testing.assert_close(model(input_ids=tokens).logits, unmerged, rtol=1e-5, atol=1e-5)
        model.unmerge_adapter()
        second, third = (layers[f"model.layers.{block}.mlp.up_proj"].base().weight for block in (1, 2))
        assert second is third
        assert torch.equal(model(input_ids=tokens).logits, unmerged)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=tokens).logits, unmerged, rtol=1e-5, atol=1e-5)


def pruned_by_torch(layer: nn.Linear) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


def normed(layer: nn.Linear) -> None:
    nn.utils.parametrizations.weight_norm(layer)


def old_normed(layer: nn.Linear) -> None:
    nn.utils.weight_norm(layer)


@pytest.mark.parametrize("compute", [pruned_by_torch, normed, old_normed])
def test_a_weight_that_is_computed_in_each_call_is_not_merged_into(compute) -> None:
    net = TwoLayers()
    compute(net.a)
    x = torch.randn(4, WIDTH)
    plain = output(net, x)
    model = attach(net)
    unmerged = output(model, x)
    assert not torch.equal(unmerged, plain)
    with pytest.raises(SQFTError, match="base weight is computed anew in each call"):
        model.merge_adapter()
    assert torch.equal(output(model, x), unmerged)
