"""Every kind of grid: the formula, its inverse, and what stays as it is."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from sqft_plugins.errors import GridError
from sqft_plugins.grid import BUILTIN, INT2, INT4, INT8, IQ4_NL, MXFP4, NF4, Grid, GridKind

OUT, IN, GROUPS = 48, 96, 3
AFFINE = [GridKind(f"affine{bits}", bits, affine=True) for bits in (2, 4, 5)]
KINDS = [*BUILTIN.values(), *AFFINE]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def fp16(*shape: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread
    return numbers.to(torch.float16).to(torch.float32)


def some_grid(kind: GridKind, seed: int = 0) -> Grid:
    """Scales of both signs in fp16, some of them 0 and some subnormal, as files of others may have them."""
    scale = fp16(OUT, GROUPS, seed=seed, spread=0.1)
    scale[0] = 0.0
    scale[1, 0] = -(2.0**-24)
    zero_point = torch.randint(0, kind.max_code + 1, (OUT, GROUPS), generator=torch.Generator().manual_seed(seed + 1))
    integer = kind.levels is None and not kind.affine
    offset = fp16(OUT, GROUPS, seed=seed + 2) if kind.affine else None
    return Grid(kind, scale, zero_point.to(torch.uint8) if integer else None, offset)


def all_codes(kind: GridKind) -> torch.Tensor:
    """uint8 [OUT, IN] with each code in it; no NaN."""
    codes = torch.randint(0, kind.max_code + 1, (OUT, IN), generator=torch.Generator().manual_seed(7))
    codes.view(-1)[: kind.max_code + 1] = torch.arange(kind.max_code + 1)
    codes = codes.to(torch.uint8)
    return codes.masked_fill(kind.level(codes).isnan(), 3)


def naive_values(grid: Grid, codes: torch.Tensor) -> torch.Tensor:
    """The formula in float64, element by element of the expanded grid, rounded to float32 once."""
    wide = [
        torch.zeros(OUT, IN) if part is None else part.repeat_interleave(IN // GROUPS, 1)
        for part in (grid.scale, grid.zero_point, grid.offset)
    ]
    scale, zero_point, offset = (part.double() for part in wide)
    levels = torch.tensor(grid.kind.levels or range(256), dtype=torch.float32).double()[codes.long()]
    return ((levels - zero_point) * scale + offset).float()


@each_kind
def test_the_formula_is_rounded_once(kind):
    grid, codes = some_grid(kind), all_codes(kind)
    assert torch.equal(grid.dequantize(codes), naive_values(grid, codes))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(grid.dequantize(codes, dtype=dtype), naive_values(grid, codes).to(dtype))


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_value_gets_a_code_of_that_value(kind, dtype):
    for seed in range(20):
        grid, codes = some_grid(kind, seed), all_codes(kind)
        values = grid.dequantize(codes, dtype=dtype)
        assert torch.equal(grid.dequantize(grid.quantize(values), dtype=dtype), values)


@pytest.mark.parametrize("kind", AFFINE, ids=lambda kind: kind.name)
def test_a_value_gets_a_code_of_that_value_where_offsets_swallow_the_steps(kind):
    for seed in range(20):
        scale = fp16(OUT, GROUPS, seed=seed, spread=2.0**-10)
        grid = Grid(kind, scale, offset=fp16(OUT, GROUPS, seed=seed + 50) * 2.0 ** (seed - 4))
        values = grid.dequantize(all_codes(kind))
        assert torch.equal(grid.dequantize(grid.quantize(values)), values)


@each_kind
def test_no_other_code_is_nearer(kind):
    grid = some_grid(kind)
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    codes = torch.arange(kind.max_code + 1, dtype=torch.uint8)
    each = torch.stack([naive_values(grid, torch.full((OUT, IN), int(code))) for code in codes]).double()
    nearest = (each - weight).abs().nan_to_num(torch.inf).amin(0)
    error = (grid.dequantize(grid.quantize(weight)).double() - weight).abs()
    assert bool((error <= nearest * (1 + 1e-6) + 1e-7).all())  # affine values are rounded to float32


def test_the_middle_of_two_integers_goes_to_the_even_step():
    grid = Grid(INT4, torch.tensor([[0.5]]), torch.tensor([[7]], dtype=torch.uint8))
    weight = torch.tensor([[-0.75, -0.25, 0.25, 0.75, 1.25]])  # -1.5, -0.5, 0.5, 1.5, 2.5 steps
    assert (grid.quantize(weight).int() - 7).tolist() == [[-2, 0, 0, 2, 2]]


def test_a_table_treats_both_signs_alike():
    grid = Grid(MXFP4, torch.tensor([[-0.5]]))
    weight = torch.arange(-7, 7.01, 0.125).unsqueeze(0)
    assert torch.equal(grid.dequantize(grid.quantize(weight)), -grid.dequantize(grid.quantize(-weight)))


@each_kind
def test_rows_are_those_of_the_whole(kind):
    grid, codes = some_grid(kind), all_codes(kind)
    weight, rows = grid.dequantize(codes), slice(5, 17)
    assert torch.equal(grid.quantize(weight[rows], rows), grid.quantize(weight)[rows])
    assert torch.equal(grid.dequantize(codes[rows], rows), weight[rows])
    order = torch.randperm(OUT, generator=torch.Generator().manual_seed(0))
    assert torch.equal(grid.take(order).dequantize(codes[order]), weight[order])
    assert torch.equal(grid.take(rows).dequantize(codes[rows]), weight[rows])


@each_kind
def test_groups_that_are_no_neighbours_are_those_of_the_columns_in_another_order(kind):
    plain, codes = some_grid(kind), all_codes(kind)
    order = torch.randperm(IN, generator=torch.Generator().manual_seed(1))
    grid = replace(plain, column_group=(order // (IN // GROUPS)))
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(2))

    assert torch.equal(grid.dequantize(codes[:, order]), plain.dequantize(codes)[:, order])
    assert torch.equal(grid.quantize(weight[:, order]), plain.quantize(weight)[:, order])
    rows, columns = slice(5, 17), torch.tensor([3, 90])
    assert torch.equal(grid.quantize(weight[rows][:, order], rows), plain.quantize(weight)[rows][:, order])
    assert torch.equal(grid.take(rows).dequantize(codes[rows][:, order]), plain.dequantize(codes)[rows][:, order])
    one_each = grid.columns(grid.group_of(columns, IN))
    assert torch.equal(one_each.dequantize(codes[:, columns]), grid.dequantize(codes)[:, columns])
    if kind.is_integer:
        assert torch.equal(grid.steps(codes[:, order]), plain.steps(codes)[:, order])
    assert grid.digest() != plain.digest()
    assert grid.to("cpu").equals(grid)
    assert not grid.equals(plain)


def test_codes_of_the_same_value_are_the_bases_own():
    grid = Grid(MXFP4, torch.tensor([[1.0, 0.0, -0.5]]))
    base = torch.tensor([[8, 9, 3, 5, 8, 2]], dtype=torch.uint8)  # -0, -1 | 0 is the scale | -0, 2
    new = grid.quantize(grid.dequantize(base))
    assert new.tolist() == [[0, 9, 0, 0, 0, 2]]
    assert torch.equal(grid.keep_same(new, base), base)
    moved = torch.tensor([[1, 9, 0, 0, 10, 0]], dtype=torch.uint8)
    assert grid.keep_same(moved, base).tolist() == [[1, 9, 3, 5, 10, 0]]


def test_codes_that_are_no_number_are_the_bases_own():
    grid = Grid(INT4, torch.tensor([[torch.nan, torch.inf]]), torch.tensor([[8, 8]], dtype=torch.uint8))
    base, new = torch.tensor([[1, 9]], dtype=torch.uint8), torch.tensor([[2, 10]], dtype=torch.uint8)
    assert torch.equal(grid.keep_same(new, base), base)


def test_infinite_scales_are_dequantized_as_ieee_says_and_refused_by_name():
    grid = Grid(INT4, torch.tensor([[torch.nan, -torch.inf]]), torch.tensor([[8, 8]], dtype=torch.uint8))
    values = grid.dequantize(torch.tensor([[1, 8, 7, 8]], dtype=torch.uint8))
    assert values.isnan().tolist() == [[True, True, False, True]]
    assert float(values[0, 2]) == torch.inf
    with pytest.raises(GridError, match=r"blk\.0\.ffn has a scale that is NaN or infinite"):
        grid.check_finite("blk.0.ffn")
    some_grid(NF4).check_finite("blk.0.ffn")


def test_an_infinite_offset_is_refused():
    with pytest.raises(GridError, match="NaN or infinite"):
        Grid(AFFINE[0], torch.ones(1, 1), offset=torch.full((1, 1), torch.inf)).check_finite("m")


def test_the_digest_of_int4_is_that_of_version_0_1():
    grid = some_grid(INT4)
    own = hashlib.sha256(grid.scale.numpy().tobytes() + grid.zero_point.numpy().tobytes())
    assert grid.digest() == own.hexdigest()


def test_digests_tell_kinds_and_numbers_apart():
    scale = torch.ones(2, 2)
    zero = torch.ones(2, 2, dtype=torch.uint8)
    grids = [
        Grid(INT4, scale, zero), Grid(INT2, scale, zero), Grid(INT8, scale, zero * 2), Grid(NF4, scale),
        Grid(IQ4_NL, scale), Grid(AFFINE[1], scale, offset=scale), Grid(AFFINE[1], scale, offset=scale * 2),
    ]  # fmt: skip
    assert len({grid.digest() for grid in grids}) == len(grids)


@pytest.mark.parametrize(
    ("kind", "parts", "text"),
    [
        (INT4, {"scale": torch.ones(2, 2, dtype=torch.float16)}, "scale of grid 'int4' is torch.float16"),
        (INT4, {"scale": torch.ones(2)}, r"give torch.float32 \[out, groups\]"),
        (INT4, {"scale": torch.ones(2, 2), "zero_point": torch.ones(2, 2)}, "zero_point .* give torch.uint8"),
        (INT4, {"scale": torch.ones(2, 2), "zero_point": torch.ones(2, 1, dtype=torch.uint8)}, "zero_point"),
        (AFFINE[0], {"scale": torch.ones(2, 2)}, "needs an offset"),
        (INT4, {"scale": torch.ones(2, 2), "offset": torch.ones(2, 2)}, "has no offset"),
        (
            NF4,
            {"scale": torch.ones(2, 2), "column_group": torch.zeros(4)},
            r"is torch.float32 \(4,\): give torch.int64",
        ),
        (NF4, {"scale": torch.ones(2, 2), "zero_point": torch.ones(2, 2, dtype=torch.uint8)}, "has no zero_point"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(kind, parts, text):
    with pytest.raises(GridError, match=text):
        Grid(kind, **parts)


def test_a_grid_moves_as_one():
    grid = some_grid(AFFINE[0]).to("meta")
    assert grid.scale.is_meta
    assert grid.offset.is_meta
    assert grid.groups == GROUPS
