"""The grid of a layer quantizes rows as the whole weight is quantized, and moves whole."""

from __future__ import annotations

import torch

from sqft_plugins.grid import make_grid
from sqft_plugins.layer_grid import LayerGrid


def test_rows_have_the_codes_of_the_whole() -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    numbers = make_grid(weight, 32, symmetric=False)
    grid, codes, rows = LayerGrid(numbers), numbers.quantize(weight), slice(2, 5)
    assert torch.equal(grid.quantize(weight), codes)
    assert torch.equal(grid.quantize(weight[rows], rows), codes[rows])
    assert torch.equal(grid.dequantize(codes[rows], rows), numbers.dequantize(codes)[rows])
    assert torch.equal(grid.with_codes(codes).dequantize(), grid.dequantize(codes))


def test_a_move_takes_everything_along() -> None:
    grid = LayerGrid(make_grid(torch.ones(2, 4), 4), torch.ones(2, 4, dtype=torch.bool), True, True, torch.ones(2, 4))
    moved = grid.to(torch.device("meta"))
    assert {part.device.type for part in (moved, moved.grid.scale, moved.grid.zero_point, moved.mask, moved.codes)} == {
        "meta"
    }
    assert moved.on_grid
    assert moved.dense
    assert LayerGrid(grid.grid).to(torch.device("meta")).mask is None
