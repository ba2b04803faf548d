"""GPTQ against a naive implementation written here, and its promises: the mask kept, the error below rounding's."""

from __future__ import annotations

import pytest
import torch

from sqft_plugins import grid
from sqft_plugins.checkpoint import GridStamp, ModelFolder
from sqft_plugins.compress.gptq import GPTQ
from sqft_plugins.compress.hessian import inverse_factor
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import GridError, SQFTError
from sqft_plugins.measure import zeros_kept

OUT, IN = 24, 256


def problem(seed: int = 0, density: float = 0.5):
    """A weight, its mask, and correlated inputs [tokens, in] as those of a network are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(IN, IN, generator=generator) / IN**0.5 + torch.eye(IN)
    inputs = torch.randn(600, IN, generator=generator) @ mixing
    weight = torch.randn(OUT, IN, generator=generator) * 0.1
    mask = torch.rand(OUT, IN, generator=generator) < density
    return weight * mask, mask, inputs


def made(weight, mask, inputs, group_size=32, symmetric=True):
    return GPTQ().quantize(weight, mask, inputs.T @ inputs, GridStamp(group_size=group_size, symmetric=symmetric))


def naive(weight, mask, hessian, group_size, symmetric):
    """One column after the other, those with the most energy first, inverting what is left of the Hessian each time
    (optimal brain surgeon, the definition that GPTQ computes faster); the grid is the fitted one."""
    damped = hessian.double() + 0.05 * hessian.diagonal().mean().double() * torch.eye(IN, dtype=torch.float64)
    made = grid.fit_grid(weight * mask, group_size, symmetric)
    scale, zero_point = made.scale, made.zero_point
    w, codes = weight.double().clone(), torch.zeros(OUT, IN, dtype=torch.uint8)
    left = torch.argsort(hessian.diagonal(), descending=True, stable=True).tolist()
    while left:
        column, group = left[0], left[0] * scale.shape[1] // IN
        own = scale[:, group : group + 1], zero_point[:, group : group + 1]
        codes[:, [column]] = grid.quantize((w[:, column] * mask[:, column])[:, None], *own)
        value = grid.dequantize(codes[:, [column]], *own)[:, 0].double()
        inverse = torch.linalg.inv(damped[left][:, left])
        w[:, left] -= ((w[:, column] - value) / inverse[0, 0])[:, None] * inverse[0][None]
        left = left[1:]
    return codes, scale


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_it_equals_the_naive_implementation(symmetric, group_size, density) -> None:
    weight, mask, inputs = problem(density=density)
    hessian = inputs.T @ inputs
    ours = made(weight, mask, inputs, group_size, symmetric)
    codes, scale = naive(weight, mask, hessian, group_size, symmetric)
    assert torch.equal(ours.scale, scale)
    # the naive one sums in float64: where a value lies on the border of two codes, either may come out, and what
    # follows in that row differs by about a step
    assert (ours.codes == codes).float().mean() > 0.97
    assert (ours.codes.int() - codes.int()).abs().max() <= 2


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.3, 0.0])
def test_the_mask_is_kept_and_the_output_error_is_below_roundings(symmetric, group_size, density) -> None:
    weight, mask, inputs = problem(seed=1, density=density)
    ours = made(weight, mask, inputs, group_size, symmetric)
    assert not ours.dequantize()[~mask].any()
    rounded = grid.round_to_nearest(weight, mask, group_size, symmetric).dequantize()
    error = (inputs @ (ours.dequantize() - weight).T).norm()
    by_rounding = (inputs @ (rounded - weight).T).norm()
    assert error < by_rounding or density == 0.0
    again = grid.round_scale(ours.scale)
    assert torch.equal(again, ours.scale)


def test_inputs_that_are_always_zero_are_rounded() -> None:
    weight, mask, inputs = problem()
    inputs[:, 3] = 0
    ours = made(weight, mask, inputs)
    assert torch.isfinite(ours.dequantize()).all()


def test_a_hessian_that_is_none_is_an_error() -> None:
    with pytest.raises(GridError, match="cannot be inverted with damping"):
        inverse_factor(-torch.eye(8) * 5)


def test_a_folder_is_quantized_and_keeps_its_mask(tiny_llama, tmp_path) -> None:
    prune_folder(tiny_llama, tmp_path / "pruned", sparsity=0.5, sequences=4, length=32)
    report = quantize_folder(tmp_path / "pruned", tmp_path / "int4", "gptq", sequences=8, length=64)
    folder = ModelFolder(tmp_path / "int4")
    assert zeros_kept(folder, ModelFolder(tmp_path / "pruned").masks) == 1.0
    assert folder.stamp.pipeline == ["wanda", "gptq"]
    assert len(report["layers"]) == len(folder.int4.modules) == 14
    again = quantize_folder(tmp_path / "pruned", tmp_path / "again", "gptq", sequences=8, length=64)
    assert [{**row, "seconds": 0} for row in again["layers"]] == [{**row, "seconds": 0} for row in report["layers"]]
    with pytest.raises(SQFTError, match="give more text"):
        quantize_folder(tmp_path / "pruned", tmp_path / "no", "gptq", sequences=10**6)
    assert not (tmp_path / "no").exists()
