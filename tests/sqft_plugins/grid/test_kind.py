"""Tables: each code's level is the right number, and the nearest level is the nearest, ties included."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch

from sqft_plugins.errors import GridError
from sqft_plugins.grid import BUILTIN, FP8_E4M3, MXFP4, NF4, NVFP4, GridKind

TABLES = [kind for kind in BUILTIN.values() if kind.levels is not None]
TWO = GridKind("two", 1, (-3.0, 0.5))


def naive_nearest(kind: GridKind, numbers: torch.Tensor) -> torch.Tensor:
    """Compares each number with each level: the nearest, then the even code, then the lower code."""
    levels = torch.tensor(kind.levels, dtype=torch.float64)
    inside = numbers.double().clamp(float(levels.nan_to_num(0).min()), float(levels.nan_to_num(0).max()))
    distance = (inside.unsqueeze(1) - levels).abs().nan_to_num(torch.inf)
    code = torch.arange(len(levels))
    order = code + 1000 * (code % 2)
    nearest = torch.where(distance == distance.amin(1, keepdim=True), order, 10**6).argmin(1)
    first_of_its_level = (levels[nearest].unsqueeze(1) == levels).int().argmax(1)  # 0 and -0
    return first_of_its_level.to(torch.uint8)


def hard_numbers(kind: GridKind, dtype: torch.dtype) -> torch.Tensor:
    """The middles of all neighbours, their neighbours in `dtype`, the levels, ordinary and huge numbers."""
    levels = torch.tensor(kind.levels, dtype=torch.float64)
    levels = levels[~levels.isnan()].unique()
    middles = ((levels[1:] + levels[:-1]) / 2).to(dtype)
    infinite = torch.tensor(torch.inf, dtype=dtype)
    random = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=dtype) * float(levels.max()) / 2
    beside = [torch.nextafter(middles, side) for side in (infinite, -infinite)]
    edges = torch.tensor([0.0, -0.0, 1e30, -1e30, torch.inf, -torch.inf], dtype=dtype)
    return torch.cat([middles, *beside, levels.to(dtype), random, edges])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [*TABLES, TWO], ids=lambda kind: kind.name)
def test_the_nearest_level_is_that_of_a_search_through_all(kind, dtype):
    numbers = hard_numbers(kind, dtype)
    assert torch.equal(kind.nearest_level(numbers), naive_nearest(kind, numbers))


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.name)
def test_not_a_number_gets_a_code(kind):
    assert int(kind.nearest_level(torch.full((2, 3), torch.nan)).max()) <= kind.max_code


def test_fp8_is_torchs():
    codes = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(FP8_E4M3.level(codes).nan_to_num(7), codes.view(torch.float8_e4m3fn).float().nan_to_num(7))
    numbers = torch.randn(10**5, generator=torch.Generator().manual_seed(0)) * 200
    cast = numbers.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(FP8_E4M3.level(FP8_E4M3.nearest_level(numbers)), cast)


def test_fp4_is_that_of_compressed_tensors_doubled():
    from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA

    numbers = torch.arange(-6, 6.01, 0.125)
    with torch.compiler.set_stance("force_eager"):  # theirs is compiled at the first call, half a minute
        theirs = FP4_E2M1_DATA.cast_to_fp4(numbers.clone())
    assert torch.equal(MXFP4.level(MXFP4.nearest_level(numbers * 2)) / 2, theirs)
    assert NVFP4.levels == MXFP4.levels


def test_nf4_is_the_quantiles_of_qlora():
    offset = 0.9677083  # of the paper's code
    positive = [NormalDist().inv_cdf(float(p)) for p in torch.linspace(offset, 0.5, 9)[:-1]]
    negative = [-NormalDist().inv_cdf(float(p)) for p in torch.linspace(offset, 0.5, 8)[:-1]]
    levels = sorted([*positive, 0.0, *negative])
    wanted = torch.tensor(levels) / max(levels)
    assert torch.allclose(torch.tensor(NF4.levels, dtype=wanted.dtype), wanted, rtol=0, atol=1e-6)


def test_zero_is_a_value_of_integers_and_of_tables_that_have_it():
    assert {kind.name for kind in BUILTIN.values() if not kind.has_zero} == {"iq4_nl"}
    assert not GridKind("minimum", 4, affine=True).has_zero


@pytest.mark.parametrize(
    ("bits", "levels", "text"), [(0, None, "bits=0"), (9, None, "1..8"), (2, (0.0, 1.0), "give 4")]
)
def test_what_is_no_kind_is_refused(bits, levels, text):
    with pytest.raises(GridError, match=text):
        GridKind("odd", bits, levels)


@pytest.mark.parametrize("levels", [(1.0, 1.0), (torch.nan, 1.0), (torch.inf, 1.0)])
def test_levels_that_are_not_two_finite_ones_are_refused(levels):
    with pytest.raises(GridError, match="at least two different finite ones"):
        GridKind("odd", 1, levels)
