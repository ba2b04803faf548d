"""Weights that stay packed are, row by row, the weights that were packed.

pytest tests/sqft_plugins/grid/test_packed.py
"""

import pytest
import torch

from sqft_plugins.grid import QuantizedWeight, make_grid
from sqft_plugins.grid.frozen import Grid
from sqft_plugins.grid.kinds import ACT_ORDER, IQ4_NL, UNIFORM
from sqft_plugins.grid.packed import PackedCodes, floats_of


def weight_of(bits, symmetric=True, rows=33, columns=96):
    codes = torch.randint(2**bits, (rows, columns), dtype=torch.uint8)
    return QuantizedWeight(codes, make_grid(torch.randn(rows, columns), 32, symmetric, UNIFORM[bits]))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", UNIFORM)
def test_rows_are_those_that_were_packed(bits, symmetric):
    weight = weight_of(bits, symmetric)
    packed = PackedCodes.of(weight)
    assert packed.shape == (33, 96)
    assert packed.rows(slice(None)).equals(weight)
    assert packed.rows(slice(5, 9)).equals(weight.take(slice(5, 9)))
    some = torch.tensor([30, 2, 2])
    assert packed.rows(some).equals(weight.take(some))


def test_a_table_and_columns_in_another_order():
    codes, scale = torch.randint(16, (8, 64), dtype=torch.uint8), torch.rand(8, 2)
    for grid in (Grid(IQ4_NL, scale), Grid(ACT_ORDER[4], scale, column_group=torch.randint(2, (64,)))):
        weight = QuantizedWeight(codes, grid)
        assert PackedCodes.of(weight).rows(slice(2, 5)).equals(weight.take(slice(2, 5)))


def test_it_takes_the_bits_of_the_codes_and_16_for_each_scale():
    packed = PackedCodes.of(weight_of(3, rows=64, columns=256))
    assert packed.nbytes == 64 * (256 * 3 // 8 + 256 // 32 * 2) + 1  # one zero point for all


def test_scales_that_16_bits_do_not_hold_stay_whole():
    weight = weight_of(4)
    odd = QuantizedWeight(weight.codes, Grid(weight.grid.kind, weight.scale * 1.2345678, weight.zero_point))
    packed = PackedCodes.of(odd)
    assert packed.scale.dtype == torch.float32
    assert packed.rows(slice(None)).equals(odd)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_are_those_of_the_weight(dtype, monkeypatch):
    monkeypatch.setattr("sqft_plugins.grid.packed.BLOCK", 5 * 96)  # in blocks of five rows
    weight = weight_of(4, symmetric=False)
    packed = PackedCodes.of(weight)
    assert torch.equal(floats_of(packed, dtype), weight.dequantize(dtype))
    assert torch.equal(floats_of(packed, dtype, slice(7, 20)), weight.dequantize(dtype)[7:20])
