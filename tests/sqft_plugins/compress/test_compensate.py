"""Rounding with compensation on a grid that is there, against a naive implementation written here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sqft_plugins.compress.compensate import compensated
from sqft_plugins.grid import INT3, INT4, IQ4_NL, MXFP4, Grid, GridKind, make_grid

OUT, IN = 16, 128
AFFINE = GridKind("affine", 4, affine=True)


def problem(seed: int = 0):
    """A weight, and correlated inputs [tokens, in] as those of a network are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(IN, IN, generator=generator) / IN**0.5 + torch.eye(IN)
    return torch.randn(OUT, IN, generator=generator) * 0.1, torch.randn(500, IN, generator=generator) @ mixing


def grid_for(weight, kind):
    if kind in (INT3, INT4):
        return make_grid(weight, 32, kind=kind)
    groups = weight.unflatten(1, (-1, 32))
    if kind is AFFINE:
        low, high = groups.amin(-1), groups.amax(-1)
        return Grid(kind, (high - low) / 15, None, low)
    return Grid(kind, groups.abs().amax(-1) / max(kind.levels))


def naive(weight, hessian, grid, mask):
    """One column after the other, in the order of their inputs' energy, inverting what is left of the Hessian each time
    (optimal brain surgeon, the definition that GPTQ computes faster)."""
    damped = hessian.double() + 0.01 * hessian.diagonal().mean().double() * torch.eye(IN, dtype=torch.float64)
    left = torch.argsort(hessian.diagonal(), descending=True, stable=True).tolist()
    wanted, codes = weight.double().clone(), torch.zeros(OUT, IN, dtype=torch.uint8)
    while left:
        column = left[0]
        kept = wanted[:, column] if mask is None else wanted[:, column] * mask[:, column]
        row = torch.zeros(OUT, IN)
        row[:, column] = kept.float()
        codes[:, column] = grid.quantize(row)[:, column]
        value = grid.dequantize(codes)[:, column].double()
        inverse = torch.linalg.inv(damped[left][:, left])
        wanted[:, left] -= ((wanted[:, column] - value) / inverse[0, 0])[:, None] * inverse[0][None]
        left = left[1:]
    return codes


@pytest.mark.parametrize("kind", [INT3, INT4, AFFINE, IQ4_NL, MXFP4], ids=lambda kind: kind.name)
@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_the_naive_implementation(kind, masked) -> None:
    weight, inputs = problem()
    if masked and (kind is AFFINE or kind is IQ4_NL):
        pytest.skip("no mask without a 0")
    mask = torch.rand(OUT, IN, generator=torch.Generator().manual_seed(1)) < 0.5 if masked else None
    weight = weight if mask is None else weight * mask
    grid, hessian = grid_for(weight, kind), inputs.T @ inputs

    ours, plain = compensated(weight, hessian, grid, mask), naive(weight, hessian, grid, mask)
    # the naive one sums in float64: a value on the border of two codes may get either, which moves what follows
    assert (ours == plain).float().mean() > 0.97
    if mask is not None:
        assert not grid.dequantize(ours)[~mask].any()


def test_inputs_that_do_not_belong_together_compensate_nothing() -> None:
    weight, _ = problem()
    grid = grid_for(weight, INT4)
    energy = torch.rand(IN, generator=torch.Generator().manual_seed(2)) + 0.5
    assert torch.equal(compensated(weight, energy.diag(), grid), grid.quantize(weight))


def test_a_delta_below_half_a_step_reaches_the_outputs() -> None:
    """What it is for: over codes alone, rounding to nearest changes nothing."""
    weight, _ = problem()
    grid = grid_for(weight, INT4)
    base = grid.dequantize(grid.quantize(weight))
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(500, 16, generator=generator) @ torch.randn(16, IN, generator=generator)  # few directions
    inputs += 0.1 * torch.randn(500, IN, generator=generator)
    hessian = inputs.T @ inputs

    delta = torch.randn(OUT, 4, generator=generator) @ torch.randn(4, IN, generator=generator)
    delta *= 0.45 * grid.scale.min() / delta.abs().max()  # of a step, at most
    assert torch.equal(grid.quantize(base + delta), grid.quantize(base))
    moved = grid.dequantize(compensated(base + delta, hessian, grid)) - base
    wanted, found = inputs @ delta.T, inputs @ moved.T
    share = float((wanted * found).sum() / wanted.square().sum())
    assert 0.5 < share < 1.2  # 0 for rounding to nearest
    assert (found - wanted).norm() < wanted.norm()


def test_the_device_and_dtype_of_the_weight_do_not_matter() -> None:
    weight, inputs = problem()
    weight, hessian = weight.bfloat16(), inputs.T @ inputs
    grid = grid_for(weight.float(), INT4)
    assert torch.equal(compensated(weight, hessian, grid), compensated(weight.float(), hessian, grid))


@pytest.mark.parametrize("kind", [INT4, MXFP4, AFFINE], ids=lambda kind: kind.name)
def test_groups_that_are_no_neighbours(kind):
    weight, inputs = problem()
    hessian, grid = inputs.t() @ inputs, grid_for(weight, kind)
    order = torch.randperm(IN, generator=torch.Generator().manual_seed(1))
    ordered = replace(grid, column_group=order // 32)
    codes = compensated(weight[:, order], hessian[order][:, order], ordered)
    assert torch.equal(codes, compensated(weight, hessian, grid)[:, order])
