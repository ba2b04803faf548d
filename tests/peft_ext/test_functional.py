"""The formulas against naive ones written here."""

from __future__ import annotations

import pytest
import torch

from peft_ext.functional import MaskedLinear, masked_delta, masked_linear, merged_weight

OUT, IN, R, SCALING = 12, 10, 3, 0.7


def tensors(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(OUT, IN, generator=generator, dtype=dtype)
    weight[torch.rand(OUT, IN, generator=generator) < 0.5] = 0
    A = torch.randn(R, IN, generator=generator, dtype=dtype, requires_grad=True)
    B = torch.randn(OUT, R, generator=generator, dtype=dtype, requires_grad=True)
    x = torch.randn(2, 5, IN, generator=generator, dtype=dtype, requires_grad=True)
    return x, weight, A, B


@pytest.mark.parametrize("sparse", [True, False])
def test_forward_and_gradients_equal_the_naive_formula(sparse) -> None:
    x, weight, A, B = tensors()
    ours = masked_linear(x, weight, A, B, SCALING, sparse)
    factor = (weight != 0).double() if sparse else torch.ones_like(weight)
    naive = x @ (weight + SCALING * (B @ A) * factor).T
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
    seed = torch.randn_like(naive)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (x, A, B), seed), torch.autograd.grad(naive, (x, A, B), seed), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(IN,), (0, IN), (3, 2, 2, IN)], ids=str)
def test_inputs_have_the_shapes_that_a_linear_layer_takes(shape) -> None:
    _, weight, A, B = tensors()
    x = torch.randn(shape, dtype=weight.dtype, requires_grad=True)
    ours = masked_linear(x, weight, A, B, SCALING, True)
    naive = torch.nn.functional.linear(x, weight + SCALING * (B @ A) * (weight != 0))
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
    mine, theirs = (torch.autograd.grad(y.sum(), (x, A, B)) for y in (ours, naive))
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_gradients_by_finite_differences() -> None:
    x, weight, A, B = tensors()
    assert torch.autograd.gradcheck(lambda x, A, B: MaskedLinear.apply(x, weight, A, B, SCALING, True, None), (x, A, B))


def test_nothing_of_the_weights_size_is_kept_for_the_backward_pass() -> None:
    x, weight, A, B = tensors()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        masked_linear(x, weight, A, B, SCALING, True)
    large = [t for t in kept if t.numel() >= weight.numel() and t.data_ptr() not in (weight.data_ptr(), x.data_ptr())]
    assert not large


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_merge_keeps_every_zero_and_the_dtype(dtype) -> None:
    _, weight, A, B = tensors(torch.float32)
    weight = weight.to(dtype)
    merged = merged_weight(weight, A.detach(), B.detach(), SCALING, weight != 0)
    assert merged.dtype == dtype
    assert torch.equal(merged[weight == 0], torch.zeros_like(merged[weight == 0]))
    exact = weight.double() + SCALING * (B.double() @ A.double()) * (weight != 0)
    # one rounding to the dtype, and float32 sums before it
    torch.testing.assert_close(merged.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_a_merge_survives_an_infinite_delta_at_a_pruned_place() -> None:
    weight = torch.tensor([[0.0, 1.0]])
    merged = merged_weight(weight, torch.tensor([[torch.inf, 1.0]]), torch.tensor([[1.0]]), 1.0, weight != 0)
    assert torch.equal(merged, torch.tensor([[0.0, 2.0]]))


def test_a_delta_without_a_mask_is_dense() -> None:
    _, _, A, B = tensors()
    assert torch.equal(masked_delta(A.detach(), B.detach(), SCALING, None), (B @ A).detach() * SCALING)


def test_autocast_computes_in_its_own_dtype() -> None:
    x, weight, A, B = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_linear(x, weight.bfloat16(), A, B, SCALING, True)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert A.grad is not None
    assert A.grad.dtype == torch.float32
    exact = x @ (weight + SCALING * (B @ A) * (weight != 0)).T
    # bf16 keeps 8 bits: inputs, weights and the result are each rounded to 1 part in 256
    torch.testing.assert_close(y.float(), exact, rtol=0.03, atol=0.06)
