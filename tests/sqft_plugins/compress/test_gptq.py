"""GPTQ against a naive implementation written here, and its promises: the mask kept, the error below rounding's."""

from __future__ import annotations

import pytest
import torch

from sqft_plugins import grid
from sqft_plugins.checkpoint import GridStamp, ModelFolder
from sqft_plugins.compress.gptq import GPTQ, gptq, inverse_factor
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


def naive(weight, mask, hessian, group_size, symmetric):
    """One column after the other over the whole remaining weight, inverting what is left of the Hessian each time
    (optimal brain surgeon, the definition that GPTQ computes faster)."""
    damped = hessian.double() + 0.01 * hessian.diagonal().mean().double() * torch.eye(IN, dtype=torch.float64)
    w = weight.double().clone()
    codes, result = torch.zeros(OUT, IN, dtype=torch.uint8), torch.zeros(OUT, IN, dtype=torch.float64)
    width = IN if group_size == -1 else group_size
    for column in range(IN):
        if column % width == 0:
            group = slice(column, column + width)
            scale, zero_point = grid.make_scale(w[:, group] * mask[:, group], -1, symmetric)
        code = grid.quantize((w[:, column] * mask[:, column])[:, None], scale, zero_point)
        codes[:, column] = code[:, 0]
        result[:, column] = (scale * (code.float() - zero_point.float()))[:, 0].double()
        inverse = torch.linalg.inv(damped[column:, column:])
        error = (w[:, column] - result[:, column]) / inverse[0, 0]
        w[:, column:] -= error[:, None] * inverse[0][None]
    return codes, result


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_it_equals_the_naive_implementation(symmetric, group_size, density) -> None:
    weight, mask, inputs = problem(density=density)
    hessian = inputs.T @ inputs
    ours = GPTQ().quantize(weight, mask, hessian, GridStamp(group_size=group_size, symmetric=symmetric))
    codes, _ = naive(weight, mask, hessian, group_size, symmetric)
    # the naive one sums in float64: where a value lies on the border of two codes, or a scale on that of two
    # roundings, either may come out, and what follows in that row differs by about a step
    assert (ours.codes == codes).float().mean() > 0.97
    assert (ours.codes.int() - codes.int()).abs().max() <= 2


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.3, 0.0])
def test_the_mask_is_kept_and_the_output_error_is_below_roundings(symmetric, group_size, density) -> None:
    weight, mask, inputs = problem(seed=1, density=density)
    ours = gptq(weight, mask, inverse_factor(inputs.T @ inputs), group_size, symmetric)
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
    ours = gptq(weight, mask, inverse_factor(inputs.T @ inputs), 32, True)
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
