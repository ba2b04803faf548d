"""The operators of one INT4 linear, without an engine: the formula, planes, and the choice between them."""

from __future__ import annotations

import pytest
import torch
from helpers_quantization import nbytes, unpack

from sqft_plugins.errors import SQFTError
from sqft_plugins.grid import round_to_nearest
from vllm_ext import variables
from vllm_ext.checks import has_int4_kernel
from vllm_ext.quantization.choice import choose
from vllm_ext.quantization.operators import Problem, check_pruned
from vllm_ext.quantization.sparse_operator import SparseOperator
from vllm_ext.quantization.torch_operator import TorchOperator

OPERATORS = [TorchOperator(), SparseOperator()]
GRIDS = [(32, True), (64, False), (-1, True), (-1, False)]


def weight_and_mask(group_size: int, symmetric: bool, out: int = 48, columns: int = 128):
    generator = torch.Generator().manual_seed(group_size + symmetric)
    weight = torch.randn(out, columns, generator=generator)
    mask = torch.rand(out, columns, generator=generator) < 0.5
    return round_to_nearest(weight, mask, group_size, symmetric), mask


def formula(weight, x, bias):
    """scale * (code - zero_point), x @ W.T + bias, in float64."""
    group = weight.codes.shape[1] // weight.scale.shape[1]
    scale = weight.scale.double().repeat_interleave(group, 1)
    dense = scale * (weight.codes.double() - weight.zero_point.double().repeat_interleave(group, 1))
    return x.double() @ dense.T + (0 if bias is None else bias.double())


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
@pytest.mark.parametrize(("group_size", "symmetric"), GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_operator_computes_the_formula(operator, group_size, symmetric, dtype):
    weight, mask = weight_and_mask(group_size, symmetric)
    state = operator.prepare(weight, mask, dtype)
    x, bias = torch.randn(5, 128).to(dtype), torch.randn(48).to(dtype)
    tolerance = 2e-4 if dtype == torch.float32 else 2e-2  # of the largest output: fixed point; bf16 weights and outputs
    for given in (bias, None):
        exact = formula(weight, x, given)
        y = operator.linear(state, x, given)
        assert y.dtype == dtype
        assert float((y.double() - exact).abs().max() / exact.abs().max()) < tolerance


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
@pytest.mark.parametrize(("group_size", "symmetric"), GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_prepared_comes_back_bit_for_bit(operator, group_size, symmetric, dtype):
    weight, mask = weight_and_mask(group_size, symmetric)
    again, kept = unpack(operator.prepare(weight, mask, dtype))
    assert again.equals(weight)
    assert torch.equal(kept, mask)


@pytest.mark.parametrize(("group_size", "symmetric"), GRIDS)
def test_the_sparse_operator_computes_a_layer_that_keeps_everything(group_size, symmetric):
    weight, mask = weight_and_mask(group_size, symmetric)
    weight, everything = round_to_nearest(torch.randn(48, 128), None, group_size, symmetric), torch.ones_like(mask)
    x = torch.randn(5, 128).to(torch.bfloat16)
    exact = formula(weight, x, None)
    y = SparseOperator().linear(SparseOperator().prepare(weight, everything, torch.bfloat16), x, None)
    assert float((y.double() - exact).abs().max() / exact.abs().max()) < 1e-2  # the bf16 output


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_a_plane_is_the_layer_with_other_codes(operator):
    weight, mask = weight_and_mask(32, False)
    moved = torch.where(mask, (weight.codes + 3) % 16, weight.codes)
    state = operator.prepare(weight, mask, torch.float32)
    plane = operator.plane(state, moved)
    x = torch.randn(3, 128)
    alone = operator.linear(operator.prepare(weight._replace(codes=moved), mask, torch.float32), x, None)
    assert torch.equal(operator.linear(state, x, None, plane), alone)
    assert not torch.equal(operator.linear(state, x, None), alone)
    assert torch.equal(unpack(state, plane)[0].codes, moved)
    with pytest.raises(SQFTError, match="mask"):
        operator.plane(state, (weight.codes + 1) % 16)


def test_the_sparse_form_of_half_the_weights_is_the_smallest():
    weight, mask = weight_and_mask(32, True, 256, 512)
    dense, sparse = (nbytes(operator.prepare(weight, mask, torch.bfloat16)) for operator in OPERATORS)
    assert 8 * sparse / mask.numel() < 3.8  # 1 + 2 bits and 16 bits a group of 32, and the uneven halves
    assert sparse < dense / 4
    assert SparseOperator().plane(SparseOperator().prepare(weight, mask, torch.bfloat16), weight.codes).nbytes < sparse


def test_a_mask_that_does_not_fit_the_codes_is_told():
    weight, mask = weight_and_mask(32, True)
    check_pruned(weight.codes, weight.zero_point, mask)
    with pytest.raises(SQFTError, match=r"layer x is not zero at \d+ places that its mask prunes"):
        check_pruned(weight.codes, weight.zero_point, mask.roll(1), "layer x")


def problem(**changes) -> Problem:
    return Problem((64, 128), 32, True, 0.5, torch.bfloat16)._replace(**changes)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({}, "sparse", "the fastest that fits"),
        ({"density": 0.8, "dtype": torch.float32}, "torch", "does not take float32"),
        ({"density": 0.8, "shape": (40, 128)}, "sparse", "multiples of 32"),
    ],
)
def test_the_fastest_that_fits_is_chosen_and_the_reason_said(changes, name, reason, monkeypatch):
    monkeypatch.delenv(variables.OPERATOR, raising=False)
    choice = choose(problem(**changes))
    assert choice.operator.name == name
    assert reason in choice.reason


@pytest.mark.vllm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dense_layer_takes_vllms_kernel_where_the_processor_has_it_and_ours_elsewhere(dtype, monkeypatch):
    from vllm_ext.quantization import vllm_operator

    monkeypatch.delenv(variables.OPERATOR, raising=False)
    dense = problem(density=0.8, dtype=dtype)
    assert has_int4_kernel() == (vllm_operator.why_no_cpu_kernel() is None)  # doctor's answer is vLLM's
    here = choose(dense)
    assert here.operator.name == ("vllm" if vllm_operator.why_no_cpu_kernel() is None else "sparse")
    assert "more than 75% of the layer is kept" in here.reason

    monkeypatch.setattr(vllm_operator, "CPU_KERNEL", "an_operator_that_no_build_has")
    elsewhere = choose(dense)
    assert elsewhere.operator.name == "sparse"
    assert "vLLM has no INT4 kernel for this processor" in elsewhere.reason
    monkeypatch.setenv(variables.OPERATOR, "vllm")
    with pytest.raises(SQFTError, match=r"SQFT_VLLM_OPERATOR=vllm: vLLM has no INT4 kernel .*: unset it"):
        choose(dense)


@pytest.mark.vllm
def test_the_variable_forces_an_operator_or_says_why_it_cannot(monkeypatch):
    from vllm_ext.quantization.vllm_operator import why_no_cpu_kernel

    for name in variables.OPERATORS:
        if name == "vllm" and why_no_cpu_kernel() is not None:
            continue  # the test above
        monkeypatch.setenv(variables.OPERATOR, name)
        assert choose(problem()).operator.name == name
    monkeypatch.setenv(variables.OPERATOR, "sparse")
    with pytest.raises(SQFTError, match="SQFT_VLLM_OPERATOR=sparse: a float32 layer of which more than 75% is kept"):
        choose(problem(density=1.0, dtype=torch.float32))


def test_an_unknown_operator_is_named(monkeypatch):
    monkeypatch.setenv(variables.OPERATOR, "sparce")
    with pytest.raises(SQFTError, match="SQFT_VLLM_OPERATOR=sparce is no operator: did you mean 'sparse'"):
        variables.forced_operator()
