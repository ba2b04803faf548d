"""Layers over packed weights compute what layers over the same floats compute, gradients included.

pytest tests/sqft_plugins/checkpoint/test_packed_layers.py
"""

import pytest
import torch
from torch import nn

from sqft_plugins.checkpoint import packed_layers
from sqft_plugins.checkpoint.packed_layers import PackedEmbedding, PackedLinear
from sqft_plugins.grid import round_to_nearest
from sqft_plugins.grid.packed import PackedCodes
from sqft_plugins.structure import set_weight, weight_of


def both(dtype=torch.float32, bias=True):
    """A layer over floats, and one over the codes of these floats."""
    layer = nn.Linear(64, 48, bias=bias, dtype=dtype)
    weight = round_to_nearest(torch.randn(48, 64))
    layer.weight = nn.Parameter(weight.dequantize(dtype), requires_grad=False)
    return layer, PackedLinear(PackedCodes.of(weight), dtype, layer.bias)


def gradients(layer, x, **autocast):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, **autocast):
        y = layer(x)
    wanted = [x] if layer.bias is None else [x, layer.bias]
    torch.manual_seed(1)
    return y.detach(), *torch.autograd.grad(y, wanted, torch.randn_like(y))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_and_its_gradients(dtype, bias):
    ours, x = both(dtype, bias), torch.randn(2, 9, 64, dtype=dtype)
    for mine, theirs in zip(*(gradients(layer, x, enabled=False) for layer in ours), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_under_autocast():
    layers, x = both(torch.bfloat16), torch.randn(2, 9, 64)
    for mine, theirs in zip(*(gradients(layer, x, enabled=True) for layer in layers), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_a_large_weight_goes_by_blocks(monkeypatch):
    monkeypatch.setattr(packed_layers, "WHOLE", 10 * 64)
    layers, x = both(), torch.randn(2, 9, 64)
    for mine, theirs in zip(*(gradients(layer, x, enabled=False) for layer in layers), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)  # sums in another order


def test_nothing_of_its_size_is_kept_for_the_backward_pass():
    _, packed = both()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.shape), lambda one: one):
        packed(torch.randn(3, 64, requires_grad=True))
    assert torch.Size((48, 64)) not in kept


def test_a_float_weight_stands_in_until_it_is_released():
    layer, packed = both()
    other = torch.randn(48, 64)
    set_weight(packed, other)
    assert torch.equal(weight_of(packed), other)
    x = torch.randn(3, 64)
    assert torch.equal(packed(x), nn.functional.linear(x, other, layer.bias))
    packed.release()
    assert torch.equal(weight_of(packed), layer.weight)


class Scaled(nn.Embedding):
    def forward(self, tokens):
        return super().forward(tokens) * 3


@pytest.mark.parametrize("kind", [nn.Embedding, Scaled])
def test_an_embedding_makes_the_rows_it_needs(kind):
    weight = round_to_nearest(torch.randn(100, 64))
    layer, other = kind(100, 64, padding_idx=99), kind(100, 64, padding_idx=99)
    layer.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
    packed = PackedEmbedding(other, PackedCodes.of(weight), torch.float32)
    tokens = torch.tensor([[3, 99, 3], [0, 50, 99]])
    assert torch.equal(packed(tokens), layer(tokens))
    assert not list(packed.parameters())
    assert torch.equal(packed.weight, layer.weight)
