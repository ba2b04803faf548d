"""The formulas of quantization-aware training against naive ones written here."""

from __future__ import annotations

import pytest
import torch

from peft_ext.functional import masked_linear
from sqft_plugins import formula
from sqft_plugins.errors import GridError
from sqft_plugins.grid import INT4, MAX_CODE, Grid, dequantize, int4_weight, make_scale, quantize
from sqft_plugins.layer_grid import LayerGrid
from sqft_plugins.requantize import requantized

OUT, IN, R, SCALING = 96, 128, 6, 1.7
GRIDS = [(32, True), (64, True), (128, False), (-1, False), (32, False)]


def tensors(group_size: int = 32, symmetric: bool = True, on_grid: bool = True):
    """A sparse weight (its codes, or float), its grid and mask, and an adapter that moves about half of the codes."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, IN, generator=generator)
    mask = torch.rand(OUT, IN, generator=generator) < 0.5
    weight[~mask] = 0
    scale, zero_point = make_scale(weight, group_size, symmetric)
    if on_grid:
        weight = dequantize(quantize(weight, scale, zero_point), scale, zero_point)
    else:
        mask = weight != 0
    A = torch.randn(R, IN, generator=generator) * 0.1
    B = torch.randn(OUT, R, generator=generator)
    return weight, mask, scale, zero_point, A, B


def layer_grid(scale: torch.Tensor, zero_point: torch.Tensor, mask=None, on_grid=False) -> LayerGrid:
    return LayerGrid(Grid(INT4, scale, zero_point), mask, on_grid)


@pytest.mark.parametrize(("group_size", "symmetric"), GRIDS)
@pytest.mark.parametrize("on_grid", [True, False])
def test_codes_are_the_papers_formula(group_size, symmetric, on_grid) -> None:
    weight, mask, scale, zero_point, A, B = tensors(group_size, symmetric, on_grid)
    codes = requantized(weight, A, B, SCALING, layer_grid(scale, zero_point, mask if on_grid else None, on_grid))
    width = IN if group_size == -1 else group_size
    wide_scale = scale.double().repeat_interleave(width, 1)
    steps = (weight.double() + SCALING * (B.double() @ A.double()) * mask) / wide_scale
    naive = (torch.round(steps) + zero_point.double().repeat_interleave(width, 1)).clamp(0, 15)
    # the float32 sum may fall on the other side of a border than the float64 one, only where it is that close
    near = (steps - steps.floor() - 0.5).abs() < 1e-5
    assert torch.equal(codes[~near].double(), naive[~near])
    assert near.float().mean() < 1e-3
    assert int(codes.max()) <= MAX_CODE
    assert torch.equal(codes[~mask], zero_point.repeat_interleave(width, 1)[~mask])
    assert 0.1 < (codes != quantize(weight, scale, zero_point)).float().mean() < 0.6


@pytest.mark.parametrize(("group_size", "symmetric"), GRIDS)
def test_the_training_forward_computes_with_the_merged_codes_bit_for_bit(group_size, symmetric) -> None:
    weight, mask, scale, zero_point, A, B = tensors(group_size, symmetric)
    codes = requantized(weight, A, B, SCALING, layer_grid(scale, zero_point, mask, True))
    trained = masked_linear(torch.eye(IN), weight, A, B, SCALING, True, layer_grid(scale, zero_point, mask, True))
    assert torch.equal(trained.T, int4_weight(codes, scale, zero_point).dequantize())  # x = I shows the weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_base_of_codes_gives_the_codes_of_float32(dtype) -> None:
    weight, mask, scale, zero_point, A, B = tensors()
    grid = layer_grid(scale, zero_point, mask, True)
    narrow = weight.to(dtype)
    codes = requantized(weight, A, B, SCALING, grid)
    assert torch.equal(requantized(narrow, A, B, SCALING, grid), codes)
    trained = masked_linear(torch.eye(IN, dtype=dtype), narrow, A, B, SCALING, True, grid)
    assert torch.equal(trained.T, dequantize(codes, scale, zero_point, dtype))


def test_without_its_grid_a_narrow_base_would_give_other_codes() -> None:
    # half a step away from a code, the rounding of a bf16 base decides: that is what on_grid is for
    weight, mask, scale, zero_point, _, _ = tensors()
    A, B = scale.repeat_interleave(32, 1) / 2, torch.eye(OUT)  # s · B @ A = half a step, exactly
    codes = requantized(weight, A, B, 1.0, layer_grid(scale, zero_point, mask, True))
    narrow = weight.bfloat16()
    assert torch.equal(requantized(narrow, A, B, 1.0, layer_grid(scale, zero_point, mask, True)), codes)
    assert not torch.equal(requantized(narrow, A, B, 1.0, layer_grid(scale, zero_point, mask, False)), codes)


def test_codes_depend_neither_on_the_blocks_nor_on_the_threads(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(1024, 512, generator=generator)
    scale, zero_point = make_scale(weight)
    A, B = torch.randn(32, 512, generator=generator), torch.randn(1024, 32, generator=generator)
    codes = requantized(weight, A, B, 0.05, layer_grid(scale, zero_point))
    for block in (2**15, 2**16, 2**30):
        monkeypatch.setattr(formula, "BLOCK", block)
        assert torch.equal(requantized(weight, A, B, 0.05, layer_grid(scale, zero_point)), codes)
    torch.set_num_threads(2)
    try:
        assert torch.equal(requantized(weight, A, B, 0.05, layer_grid(scale, zero_point)), codes)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("on_grid", [True, False])
def test_the_gradient_passes_straight_through(on_grid) -> None:
    weight, mask, scale, zero_point, A, B = tensors(on_grid=on_grid)
    x = torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(4))
    seed = torch.randn(2, 5, OUT, generator=torch.Generator().manual_seed(5))
    inputs = [t.clone().requires_grad_() for t in (x, A, B)]
    grid = layer_grid(scale, zero_point, mask if on_grid else None, on_grid)
    y = masked_linear(inputs[0], weight, *inputs[1:], SCALING, True, grid)
    found = torch.autograd.grad(y, inputs, seed)
    codes = requantized(weight, A, B, SCALING, grid)
    grad_weight = (seed.flatten(0, 1).T @ x.flatten(0, 1)) * mask  # as if rounding and clamp were not there
    expected = (seed @ dequantize(codes, scale, zero_point), SCALING * B.T @ grad_weight, SCALING * grad_weight @ A.T)
    for mine, naive in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, naive, rtol=1e-4, atol=1e-3)  # float32 sums over 96 to 128 terms
    float_weight = [t.clone().requires_grad_() for t in (x, A, B)]
    plain = float_weight[0] @ (weight + SCALING * (float_weight[2] @ float_weight[1]) * mask).T
    for mine, theirs in zip(found[1:], torch.autograd.grad(plain, float_weight, seed)[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)  # A and B see what SparsePEFT's see


def test_the_input_gradient_by_finite_differences() -> None:
    weight, mask, scale, zero_point, A, B = tensors()
    x = torch.randn(3, IN, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: masked_linear(x, weight, A, B, SCALING, True, layer_grid(scale, zero_point, mask, True)),
        (x,),
    )


def test_nothing_of_the_weights_size_is_kept_for_the_backward_pass() -> None:
    weight, mask, scale, zero_point, A, B = tensors()
    x = torch.randn(2, IN)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        masked_linear(x, weight, A.requires_grad_(), B, SCALING, True, layer_grid(scale, zero_point, mask, True))
    given = {weight.data_ptr(), mask.data_ptr()}
    assert not [t for t in kept if t.numel() >= weight.numel() and t.data_ptr() not in given]


def test_under_autocast_the_operand_is_the_rounded_weight() -> None:
    weight, mask, scale, zero_point, A, B = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_linear(torch.eye(IN), weight, A, B, SCALING, True, layer_grid(scale, zero_point, mask, True))
    codes = requantized(weight, A, B, SCALING, layer_grid(scale, zero_point, mask, True))
    assert torch.equal(y.T, dequantize(codes, scale, zero_point, torch.bfloat16))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_adapter_is_refused_when_it_is_merged(value) -> None:
    weight, mask, scale, zero_point, A, B = tensors()
    B[3, 2] = value
    with pytest.raises(GridError, match="the adapter holds NaN or infinity: take an earlier checkpoint"):
        requantized(weight, A, B, SCALING, layer_grid(scale, zero_point, mask, True))
