"""The identities that every surface relies on, zeros first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqft_plugins import grid
from sqft_plugins.errors import GridError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
settings.register_profile("grid", max_examples=60, deadline=None)
settings.load_profile("grid")


@st.composite
def weights(draw, dtypes=DTYPES):
    """weight [out, 128 or 256], group_size, symmetric: ordinary to extreme magnitudes, exact zeros of both signs."""
    dtype = draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (draw(st.integers(1, 5)), draw(st.sampled_from([128, 256])))
    magnitude = 2.0 ** draw(st.integers(-30, 12))
    weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64) * magnitude
        + draw(st.sampled_from([0, 0, 3])) * magnitude
    )
    zero = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    weight = weight.masked_fill(zero, draw(st.sampled_from([0.0, -0.0]))).to(dtype)
    group_size = draw(st.sampled_from([32, 64, 128, grid.PER_CHANNEL]))
    return weight, group_size, draw(st.booleans())


def expanded(per_group: torch.Tensor, columns: int) -> torch.Tensor:
    return per_group.repeat_interleave(columns // per_group.shape[1], dim=1)


@given(weights())
def test_zero_is_the_zero_code_and_exactly_zero(case):
    weight, group_size, symmetric = case
    scale, zero_point = grid.make_scale(weight, group_size, symmetric)
    codes = grid.quantize(weight, scale, zero_point)
    zero = weight == 0
    assert torch.equal(codes[zero], expanded(zero_point, weight.shape[1])[zero])
    for dtype in DTYPES:
        assert bool((grid.dequantize(codes, scale, zero_point, dtype)[zero] == 0).all())


@given(weights())
def test_scale_has_eight_bits_and_is_exact_in_every_dtype(case):
    weight, group_size, symmetric = case
    scale, zero_point = grid.make_scale(weight, group_size, symmetric)
    assert scale.dtype == torch.float32
    assert zero_point.dtype == torch.uint8
    for dtype in FLOATS:
        assert torch.equal(scale.to(dtype).to(torch.float32), scale)
    mantissa = torch.frexp(scale.double()).mantissa * 2**8
    assert torch.equal(mantissa, mantissa.round())
    assert float(scale.min()) >= grid.MIN_SCALE
    assert float(scale.max()) <= grid.MAX_SCALE


@given(weights())
def test_rounding_again_changes_nothing(case):
    weight, group_size, symmetric = case
    scale, zero_point = grid.make_scale(weight, group_size, symmetric)
    codes = grid.quantize(weight, scale, zero_point)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) <= 15
    for dtype in DTYPES:
        if dtype == torch.float16 and float(scale.max()) * 15 > 65504:
            continue  # such a weight is infinite in float16
        copy = grid.dequantize(codes, scale, zero_point, dtype)
        assert torch.equal(grid.quantize(copy, scale, zero_point), codes)


@given(weights())
def test_error_is_at_most_half_a_step_or_what_rounding_the_range_cuts_off(case):
    weight, group_size, symmetric = case
    scale, zero_point = grid.make_scale(weight, group_size, symmetric)
    exact = grid.dequantize(grid.quantize(weight, scale, zero_point), scale, zero_point, torch.float64)
    step = expanded(scale.double(), weight.shape[1])
    error = (weight.double() - exact).abs() / step
    # inside the range: half a step. The range itself loses up to 2^-8 of its 7 or 15 steps as the scale is rounded, and
    # an asymmetric one up to half a step as its zero point is rounded to a whole code.
    lowest, highest = (
        -expanded(zero_point, weight.shape[1]).double(),
        15 - expanded(zero_point, weight.shape[1]).double(),
    )
    inside = (weight.double() / step >= lowest) & (weight.double() / step <= highest)
    assert bool((error[inside] <= 0.5 + 1e-9).all())
    cut = 7 * 2**-8 if symmetric else 0.5 + 15 * 2**-8
    assert bool((error <= 0.5 + cut).all())


@given(weights())
def test_round_to_nearest_keeps_the_mask(case):
    weight, group_size, symmetric = case
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    result = grid.round_to_nearest(weight, mask, group_size, symmetric)
    assert bool((result.dequantize()[~mask] == 0).all())
    again = grid.round_to_nearest(weight.masked_fill(~mask, 0), None, group_size, symmetric)
    assert torch.equal(result.codes, again.codes)


def test_dequantize_is_exact_in_float32():
    scale = grid.round_scale(torch.rand(64, 4, generator=torch.Generator().manual_seed(0)) * 3)
    codes = torch.randint(0, 16, (64, 128), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    zero_point = torch.randint(0, 16, (64, 4), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    exact = (codes.double() - expanded(zero_point, 128).double()) * expanded(scale.double(), 128)
    assert torch.equal(grid.dequantize(codes, scale, zero_point).double(), exact)


def test_symmetric_codes_surround_zero_evenly():
    result = grid.round_to_nearest(torch.linspace(-1, 1, 32).reshape(1, 32))
    assert int(result.zero_point) == grid.SYMMETRIC_ZERO_POINT
    assert (int(result.codes.min()), int(result.codes.max())) in {(0, 15), (1, 15)}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_broken_weights_are_refused(value, symmetric):
    weight = torch.ones(2, 32)
    weight[1, 3] = value
    with pytest.raises(GridError, match="NaN or infinity"):
        grid.make_scale(weight, 32, symmetric)


def test_a_scale_above_fp16_is_refused():
    with pytest.raises(GridError, match="outside the exact range"):
        grid.make_scale(torch.full((1, 32), 1e6))


def test_tiny_weights_get_the_smallest_scale():
    scale, _ = grid.make_scale(torch.full((1, 32), 1e-30, dtype=torch.float64))
    assert float(scale) == grid.MIN_SCALE


@pytest.mark.parametrize(("size", "groups"), [(32, 4), (128, 1), (grid.PER_CHANNEL, 1)])
def test_groups_are_counted_as_scales_are_made(size, groups):
    weight = grid.round_to_nearest(torch.ones(3, 128), group_size=size)
    assert grid.group_count(128, size) == weight.scale.shape[1] == groups
    assert weight.group_size == 128 // groups


@pytest.mark.parametrize(("size", "text"), [(32, "use one of \\[-1\\]"), (0, "is not a group"), (-2, "is not a group")])
def test_group_sizes_that_do_not_fit_are_refused(size, text):
    with pytest.raises(GridError, match=text):
        grid.make_scale(torch.ones(2, 40), size)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_each_width_covers_the_weight_and_keeps_its_zeros(bits, symmetric, group_size):
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(bits))
    mask = torch.rand(16, 128, generator=torch.Generator().manual_seed(1)) < 0.5
    kind = grid.UNIFORM[bits]
    found = grid.round_to_nearest(weight, mask, group_size, symmetric, kind)
    assert found.grid.kind is kind
    assert found.lost_zeros(mask) == 0
    assert not found.dequantize()[~mask].any()
    assert int(found.codes.max()) <= 2**bits - 1
    if symmetric:
        assert bool((found.zero_point == 2 ** (bits - 1)).all())
    step = expanded(found.scale, 128)
    error = ((found.dequantize() - weight) / step)[mask].abs()
    assert float(error.max()) <= 0.5 + 2**bits * 2**-8 + (0.0 if symmetric else 0.5)


def test_steps_of_each_width_are_whole_and_signed():
    for bits, kind in grid.UNIFORM.items():
        codes = torch.arange(2**bits, dtype=torch.uint8).repeat(2, 1)
        zero_point = torch.tensor([[0], [2**bits - 1]], dtype=torch.uint8)
        weight = grid.QuantizedWeight(codes, grid.Grid(kind, torch.ones(2, 1), zero_point))
        assert torch.equal(weight.steps().int(), codes.int() - zero_point.int())
        assert torch.equal(weight.dequantize(), weight.steps().float())
        assert weight.fits_signed(bits + 1)
        assert not weight.fits_signed(bits)


def test_what_is_no_int4_is_refused_by_name():
    grid.require_int4(grid.INT4, "model x", "the kernel")
    with pytest.raises(GridError, match=r"model x is INT3, and the kernel has INT4 only: quantize with bits=4"):
        grid.require_int4(grid.INT3, "model x", "the kernel")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", [grid.INT2, grid.INT3, grid.INT4], ids=lambda kind: kind.name)
def test_the_fitted_grid_is_the_best_of_those_that_are_tried(kind, symmetric):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    weight[0, :32], weight[1, ::2] = 0, 0

    def errors(grid):
        return (grid.dequantize(grid.quantize(weight)) - weight).unflatten(1, (2, 32)).square().sum(-1)

    tried = [errors(grid.make_grid(weight, 32, symmetric, kind, 1 - step / 20)) for step in range(11)]
    fitted = grid.fit_grid(weight, 32, symmetric, kind)
    assert torch.equal(errors(fitted), torch.stack(tried).amin(0))
    assert torch.equal(grid.round_scale(fitted.scale), fitted.scale)
    assert not fitted.dequantize(fitted.quantize(weight))[weight == 0].any()
    if kind is grid.INT2:
        assert (errors(fitted) < tried[0])[2:].all()
