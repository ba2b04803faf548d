"""The one formula against a naive one, whole and block by block."""

from __future__ import annotations

import pytest
import torch

from sqft_plugins import formula
from sqft_plugins.grid import INT4, Grid
from sqft_plugins.layer_grid import LayerGrid
from sqft_plugins.mask import numeric_mask

OUT, IN, R, SCALING = 200, 24, 3, 0.7


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, IN, generator=generator, dtype=dtype)
    weight[torch.rand(OUT, IN, generator=generator) < 0.5] = 0
    A = torch.randn(R, IN, generator=generator, dtype=dtype)
    B = torch.randn(OUT, R, generator=generator, dtype=dtype)
    return weight, A, B


@pytest.mark.parametrize("kind", ["bool", "numbers", "all ones"])
def test_the_sum_is_the_papers_formula(kind) -> None:
    weight, A, B = tensors()
    mask = {"bool": weight != 0, "numbers": numeric_mask(weight), "all ones": None}[kind]
    naive = SCALING * (B @ A) * (torch.ones_like(weight) if mask is None else mask)
    for base in (weight, None):
        found = formula.masked_sum(base, A, B, SCALING, mask, torch.float64)
        torch.testing.assert_close(found, naive if base is None else weight + naive, rtol=1e-12, atol=1e-12)
        scaled = formula.masked_sum(base, A, SCALING * B, None, mask, torch.float64)
        torch.testing.assert_close(scaled, found, rtol=1e-12, atol=1e-12)


def test_the_product_has_the_dtype_of_the_factors_and_the_sum_its_own() -> None:
    weight, A, B = tensors()
    found = formula.masked_sum(weight.float(), A, B, None, numeric_mask(weight.float()), torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, weight.float() + (B @ A).float() * (weight != 0))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("explicit", [True, False])
def test_the_blocks_together_are_the_whole(monkeypatch, sparse, explicit) -> None:
    weight, A, B = tensors()
    monkeypatch.setattr(formula, "BLOCK", 64 * IN)  # blocks of 64, 64, 64 and 8 rows
    mask = torch.rand(OUT, IN) < 0.5 if explicit else weight != 0
    grid = LayerGrid(Grid(INT4, torch.empty(0, 0)), mask) if explicit else None
    whole = formula.masked_sum(weight, A, B, None, mask if sparse else None, torch.float64)
    seen = []
    for rows, block, numbers in formula.merged_blocks(weight, A, B, sparse, torch.float64, grid):
        seen.append(rows)
        assert torch.equal(block, whole[rows])
        assert (numbers is None) == (not sparse)
        assert numbers is None or torch.equal(numbers, mask[rows].double())
    assert [rows.stop - rows.start for rows in seen] == [64, 64, 64, 8]
