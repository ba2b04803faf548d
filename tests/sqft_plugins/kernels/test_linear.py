"""The operators: every back end that runs here against float64, within the bound that csrc/kernel.h states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from helpers_kernels import error_bound, make_case, make_x

from sqft_plugins.errors import KernelError
from sqft_plugins.kernels import SparseInt4Weight, operators, reference
from sqft_plugins.kernels.library import NAMES, forced, library

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=NAMES)
def back_end(request):
    """Each compiled back end that this processor runs, in turn."""
    if request.param not in library().supported():
        pytest.skip(f"{request.param} does not run here: {library().supported() or library().why}")
    with forced(request.param):
        yield request.param


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_error_is_within_the_bound(back_end, density, symmetric):
    for out, in_features, group_size in [(64, 256, 128), (48, 192, 64), (80, 96, 32), (50, 640, 640)]:
        case = make_case(out, in_features, group_size, density, symmetric, seed=out)
        for tokens, dtype in [(1, torch.float32), (2, torch.bfloat16), (5, torch.float16), (19, torch.float32)]:
            x = make_x(tokens, in_features, dtype)
            bias = torch.randn(out).to(dtype)
            for bits in (16, 8):
                y = case.packed.linear(x, bias, bits)
                assert y.dtype == dtype
                error = (y.double() - F.linear(x.double(), case.exact, bias.double())).abs()
                assert bool((error <= error_bound(case, x, bias, bits)).all())


@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 9, 9), (33, 100, 100), (16, 24, 8), (31, 104, 104), (5, 1000, 1000)])
def test_odd_shapes_are_right(back_end, shape):
    out, in_features, group_size = shape
    case = make_case(out, in_features, group_size, 0.5, symmetric=False)
    for tokens in (1, 3, 9, 70):
        x = make_x(tokens, in_features, torch.float32)
        error = (case.packed.linear(x).double() - x.double() @ case.exact.t()).abs()
        assert bool((error <= error_bound(case, x, None)).all())


def test_an_outlier_stays_within_the_bound_and_costs_only_its_own_segment(back_end):
    case = make_case(64, 512, 128, 0.5)
    x, calm = make_x(3, 512, torch.float32, outlier=True), make_x(3, 512, torch.float32)
    assert bool(
        ((case.packed.linear(x).double() - x.double() @ case.exact.t()).abs() <= error_bound(case, x, None)).all()
    )
    codes = case.codes.clone()
    codes[:, 128:256] = 8  # the segment of the outlier has no weight: nothing of it may be seen
    blind = SparseInt4Weight.from_codes(codes, case.scale)
    assert torch.equal(blind.linear(x), blind.linear(calm))


def test_16_bits_are_far_below_the_error_of_bf16_activations(back_end):
    case, x = make_case(64, 512, 128, 0.5), make_x(8, 512, torch.float32)
    exact = x.double() @ case.exact.t()
    error = (case.packed.linear(x).double() - exact).norm()
    rounded = (x.bfloat16().double() @ case.exact.t() - exact).norm()
    assert float(error) < float(rounded) / 16


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_a_kept_weight_give_exactly_the_bias(back_end, dtype):
    case = make_case(64, 128, 32, 0.5, symmetric=False)
    x, bias = make_x(7, 128, dtype, outlier=True), torch.randn(64).to(dtype)
    empty = ~case.mask.any(1)
    assert bool(empty[16:32].all())  # a whole block
    assert bool((case.packed.linear(x)[:, empty] == 0).all())
    assert torch.equal(case.packed.linear(x, bias)[:, empty], bias[empty].expand(7, -1))


def test_zeros_and_tiny_and_huge_activations(back_end):
    case = make_case(32, 128, 32, 0.5)
    for factor in (0.0, 1e-30, 1e30):
        x = make_x(2, 128, torch.float32) * factor
        error = (case.packed.linear(x).double() - x.double() @ case.exact.t()).abs()
        assert bool((error <= error_bound(case, x, None)).all())
    x = make_x(2, 128, torch.float32)
    x[1, 5] = float("inf")
    y = case.packed.linear(x)
    assert bool(y[0].isfinite().all())
    assert bool(y[1, case.mask.any(1)].isnan().all())


def test_every_back_end_gives_the_same_bits_alone_and_in_a_batch():
    case = make_case(80, 384, 128, 0.5, symmetric=False)
    x = make_x(70, 384, torch.bfloat16)
    seen = []
    for name in library().supported():
        with forced(name):
            seen += [case.packed.linear(x), torch.cat([case.packed.linear(row[None]) for row in x])]
    if not seen:
        pytest.skip(library().why)
    assert all(torch.equal(seen[0], other) for other in seen)


def test_any_number_of_threads_gives_the_same_bits(back_end):
    case = make_case(512, 384, 128, 0.5)
    x = make_x(20, 384, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = case.packed.linear(x)
        torch.set_num_threads(3)
        assert torch.equal(case.packed.linear(x), alone)
    finally:
        torch.set_num_threads(before)


def test_groups_that_are_no_multiple_of_8_take_plain_torch():
    case = make_case(33, 36, 12, 0.5, symmetric=False)
    x, bias = make_x(5, 36, torch.float32), torch.randn(33)
    exact = x.double() @ case.exact.t() + bias.double()
    torch.testing.assert_close(case.packed.linear(x, bias).double(), exact, rtol=1e-5, atol=1e-4)
    values = case.packed.values
    planes = case.packed.linear_planes(x, [values, values], [2, 3], bias)
    torch.testing.assert_close(planes.double(), exact, rtol=1e-5, atol=1e-4)
    if library().handle is not None:
        weight = case.packed
        rest = (weight.block_offsets, weight.scales, weight.zero_points, None, 33, 16)
        with pytest.raises(RuntimeError, match="group_size=12 is no multiple of 8"):
            operators.sparse_int4_linear(x, weight.masks, weight.values, *rest)


def same(y, expected) -> bool:
    """The same bits from the kernels; torch's own GEMMs sum in another order for other shapes."""
    if library().handle is not None:
        return torch.equal(y, expected)
    return y.shape == expected.shape and torch.allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_x_may_have_any_shape_and_strides():
    case = make_case(48, 64, 32, 0.5)
    x = make_x(24, 64, torch.float32)
    y = case.packed.linear(x)
    wide = F.pad(x, (3, 5))[:, 3:67]  # rows further apart than they are wide
    turned = x.t().contiguous().t()  # not contiguous along `in`
    batched = x.view(2, 3, 4, 64)
    assert same(case.packed.linear(wide), y)
    assert same(case.packed.linear(turned), y)
    assert same(case.packed.linear(batched), y.view(2, 3, 4, 48))
    assert same(case.packed.linear(batched.transpose(0, 2)), y.view(2, 3, 4, 48).transpose(0, 2))
    assert same(case.packed.linear(x[3]), y[3])
    assert same(case.packed.linear(x[:1].expand(5, 64)), y[:1].expand(5, 48))
    assert case.packed.linear(x[:0]).shape == (0, 48)
    assert case.packed.linear(batched[:, :0]).shape == (2, 0, 4, 48)


def test_planes_are_the_calls_one_after_the_other():
    case = make_case(48, 64, 32, 0.5)
    other = torch.where(case.mask, 15 - case.codes, case.codes)
    plane = case.packed.plane(other)
    x, bias = make_x(9, 64, torch.float32), torch.randn(48)
    y = case.packed.linear_planes(x, [case.packed.values, plane, case.packed.values], [2, 4, 3], bias)
    changed = case.packed.with_values(plane)
    parts = [case.packed.linear(x[:2], bias), changed.linear(x[2:6], bias), case.packed.linear(x[6:], bias)]
    assert same(y, torch.cat(parts))
    assert same(case.packed.linear_planes(x, [plane, plane], [0, 9]), changed.linear(x))
    assert case.packed.linear_planes(x[:0], [], []).shape == (0, 48)


@pytest.mark.parametrize("served_by", ["this process", "torch"])
def test_calls_that_do_not_fit_are_refused(served_by, monkeypatch):
    weight = make_case(48, 64, 32, 0.5).packed
    x = torch.randn(3, 64)
    linear, planes = operators.sparse_int4_linear, operators.sparse_int4_linear_planes
    if served_by == "torch":
        linear, planes = operators.linear_in_torch, operators._planes
    good = {
        "x": x,
        "masks": weight.masks,
        "values": weight.values,
        "block_offsets": weight.block_offsets,
        "scales": weight.scales,
        "zero_points": None,
        "bias": None,
        "out_features": 48,
        "activation_bits": 16,
    }
    refused = [
        {"x": x[:, :63]},
        {"x": x.double()},
        {"x": torch.tensor(1.0)},
        {"x": x[:, :0]},
        {"masks": weight.masks.int()},
        {"masks": weight.masks[:2]},
        {"masks": weight.masks.t().contiguous().t()},
        {"values": weight.values[:-1]},
        {"values": weight.values[:10]},
        {"values": weight.values.char()},
        {"values": weight.values[None]},
        {"block_offsets": weight.block_offsets.int()},
        {"block_offsets": weight.block_offsets[:-1]},
        {"block_offsets": weight.block_offsets * 2},
        {"scales": weight.scales.float()},
        {"scales": weight.scales[:, :0]},
        {"scales": weight.scales[..., :8]},
        {"zero_points": torch.zeros(3, 1, 16, dtype=torch.uint8)},
        {"zero_points": torch.zeros(3, 2, 16)},
        {"bias": torch.zeros(47)},
        {"bias": torch.zeros(48, dtype=torch.bfloat16)},
        {"out_features": 49},
        {"out_features": 0},
        {"out_features": -1},
        {"activation_bits": 4},
    ]
    assert linear(*good.values()).shape == (3, 48)
    for change in refused:
        with pytest.raises((RuntimeError, KernelError)):
            linear(*{**good, **change}.values())
    rest = list(good.values())[3:]
    for values, tokens in [([weight.values], [2]), ([weight.values], [1, 2]), ([], []), ([weight.values] * 2, [4, -1])]:
        with pytest.raises((RuntimeError, KernelError), match="tokens"):
            planes(x, weight.masks, values, tokens, *rest)
    with pytest.raises((RuntimeError, KernelError)):
        planes(x, weight.masks, [weight.values, weight.values[:-1]], [1, 2], *rest)


def test_an_error_names_the_argument_the_value_and_what_fits():
    weight = make_case(48, 64, 32, 0.5).packed
    with pytest.raises((RuntimeError, KernelError), match=r"masks.*16"):
        weight.linear(torch.randn(3, 72))


def test_falling_offsets_are_refused_before_the_kernel_runs():
    weight = make_case(48, 64, 32, 0.9).packed
    offsets = weight.block_offsets.clone()
    offsets[1] = 1 << 40
    below = weight.block_offsets.clone()
    below[0] = -1
    for wrong in (offsets, below):
        arguments = (torch.randn(1, 64), weight.masks, weight.values, wrong, weight.scales, None, None, 48, 16)
        for linear in (operators.sparse_int4_linear, operators.linear_in_torch):
            with pytest.raises((RuntimeError, KernelError), match=r"fall|below 0"):
                linear(*arguments)


def test_torch_accepts_the_operators_and_their_fakes():
    case = make_case(32, 64, 32, 0.5, symmetric=False)
    weight, x, bias = case.packed, make_x(3, 64, torch.float32), torch.randn(32)
    rest = (weight.block_offsets, weight.scales, weight.zero_points, bias, 32, 16)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    ops = torch.ops.sqft
    torch.library.opcheck(ops.sparse_int4_linear.default, (x, weight.masks, weight.values, *rest), test_utils=checks)
    planes = (x, weight.masks, [weight.values] * 2, [1, 2], *rest)
    torch.library.opcheck(ops.sparse_int4_linear.planes, planes, test_utils=checks)
    torch.library.opcheck(ops.sparse_int4_pack.default, (case.codes, case.mask), test_utils=checks)
    unpack = (*weight.packed, weight.zero_points, 32, 64)
    torch.library.opcheck(ops.sparse_int4_unpack.default, unpack, test_utils=checks)


def test_a_compiled_model_gives_the_same_bits():
    case = make_case(64, 64, 32, 0.5)
    weight, bias = case.packed, torch.randn(64)

    def model(x):
        return weight.linear(F.silu(weight.linear(x, bias)))

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for tokens in (1, 6):
        x = make_x(tokens, 64, torch.float32)
        assert torch.equal(compiled(x), model(x))


def test_plain_torch_is_exact_to_float32():
    case = make_case(50, 96, 32, 0.5, symmetric=False)
    weight, x, bias = case.packed, make_x(5, 96, torch.float64), torch.randn(50, dtype=torch.float64)
    y = reference.linear(x, weight.packed, weight.scales, weight.zero_points, bias, 50)
    torch.testing.assert_close(y, F.linear(x, case.exact, bias), rtol=1e-12, atol=1e-12)
    narrow = reference.linear(x.float(), weight.packed, weight.scales, weight.zero_points, None, 50)
    bound = 2.0**-22 * 96 * (x.abs() @ case.exact.abs().t())
    assert bool(((narrow.double() - x.float().double() @ case.exact.t()).abs() <= bound).all())


CHILD = """
import json, torch
from sqft_plugins.errors import KernelError
from sqft_plugins.kernels.library import library
try:
    path = library().path
except KernelError as error:
    print(json.dumps({"error": str(error)}))
else:
    from sqft_plugins.kernels import SparseInt4Weight
    codes = torch.arange(16 * 32).reshape(16, 32).remainder(16).to(torch.uint8)
    y = SparseInt4Weight.from_codes(codes, torch.ones(16, 1)).linear(torch.ones(1, 32))
    print(json.dumps({"path": path, "why": library().why, "y": y.tolist()}))
"""


def child(kernel: str) -> dict:
    env = {**os.environ, "SQFT_KERNEL": kernel}
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.once
def test_sqft_kernel_forces_a_path_and_refuses_what_cannot_run():
    plain = child("torch")
    assert (plain["path"], plain["y"]) == ("torch", [[-16.0] * 16])
    assert "SQFT_KERNEL" in plain["why"]
    if library().handle is not None:
        assert child("scalar") == {"path": "scalar", "why": "as SQFT_KERNEL says", "y": plain["y"]}
    missing = "neon" if "neon" not in library().supported() else "avx2"
    assert f"SQFT_KERNEL={missing}" in child(missing)["error"]
    assert "did you mean 'avx512'" in child("avx51")["error"]
