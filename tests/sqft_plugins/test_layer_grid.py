"""The grid of a layer quantizes rows as the whole weight is quantized, and moves whole."""

from __future__ import annotations

import torch

from sqft_plugins.grid import dequantize, make_scale, quantize
from sqft_plugins.layer_grid import LayerGrid


def test_rows_have_the_codes_of_the_whole() -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    scale, zero_point = make_scale(weight, 32, symmetric=False)
    grid = LayerGrid(scale, zero_point)
    codes, rows = quantize(weight, scale, zero_point), slice(2, 5)
    assert torch.equal(grid.quantize(weight), codes)
    assert torch.equal(grid.quantize(weight[rows], rows), codes[rows])
    assert torch.equal(grid.dequantize(codes[rows], rows), dequantize(codes, scale, zero_point)[rows])
    assert torch.equal(grid.with_codes(codes).dequantize(), grid.dequantize(codes))


def test_a_move_takes_everything_along() -> None:
    grid = LayerGrid(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.uint8), torch.ones(2, 4, dtype=torch.bool), True)
    moved = grid.to(torch.device("meta"))
    assert {part.device.type for part in (moved.scale, moved.zero_point, moved.mask)} == {"meta"}
    assert moved.on_grid
    assert LayerGrid(grid.scale, grid.zero_point).to(torch.device("meta")).mask is None
