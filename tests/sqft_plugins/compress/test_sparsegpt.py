"""SparseGPT against its definition written here, and what every pruner promises: exact counts, zeros, dtype, error."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqft_plugins.compress.hessian import FactorMemo, inverse_factor
from sqft_plugins.compress.sparsegpt import SparseGPT
from sqft_plugins.errors import GridError, SQFTError
from sqft_plugins.mask import Pattern, conforms
from sqft_plugins.plugins.manager import build_manager

OUT, IN = 12, 160  # a block of 128 columns and a part of one
PATTERNS = ["50%", "30%", "71%", "2:4", "1:4", "4:8", "3:8", "3:5"]
PRUNERS = list(build_manager([]).collect("sqft_pruners"))


def problem(seed: int = 0, out: int = OUT, columns: int = IN):
    """A weight and correlated inputs [tokens, in] of unlike scale, as those of a network are."""
    generator = torch.Generator().manual_seed(seed)
    causes = -(-columns // 4)  # fewer than columns, so that one input tells of another
    inputs = torch.randn(600, causes, generator=generator) @ torch.randn(causes, columns, generator=generator)
    inputs += 0.3 * causes**0.5 * torch.randn(600, columns, generator=generator)
    inputs *= (0.7 * torch.randn(columns, generator=generator)).exp()
    return torch.randn(out, columns, generator=generator) * 0.1, inputs


def new_pruner(name: str):
    """One that remembers nothing of an earlier test."""
    return build_manager([]).get("sqft_pruners", name, "method")


def statistic_of(pruner, inputs):
    return {"none": None, "norm": inputs.norm(dim=0), "hessian": inputs.T @ inputs}[pruner.statistic]


def naive(weight, hessian, pattern):
    """Optimal brain surgeon, column by column over the whole remaining weight, in float64: what is left of the Hessian
    is inverted anew for every column. A row's weights are ranked at every 128th column, a group's at its first."""
    damped = hessian.double() + 0.01 * hessian.diagonal().mean().double() * torch.eye(IN, dtype=torch.float64)
    inverses = [torch.linalg.inv(damped[column:, column:]) for column in range(IN)]
    w = weight.double().clone()
    kept = torch.ones(OUT, IN, dtype=torch.bool)
    width = pattern.group or 128
    for column in range(IN):
        if column % width == 0:
            ahead = range(column, column + width if pattern.group else IN)
            for row in range(OUT):
                saliency = {j: float(w[row, j] ** 2 / inverses[j][0, 0]) for j in ahead}
                if pattern.group:
                    budget = pattern.group - pattern.keep
                else:
                    budget = round(pattern.sparsity * IN) - int((~kept[row, :column]).sum())
                lowest = sorted(ahead, key=saliency.__getitem__)[:budget]
                kept[row, [j for j in lowest if j < column + width]] = False
        inverse = inverses[column]
        error = (w[:, column] * ~kept[:, column]) / inverse[0, 0]
        w[:, column:] -= error[:, None] * inverse[0][None]
        w[:, column] *= kept[:, column]
    return w, kept


@pytest.mark.parametrize("text", PATTERNS)
def test_it_equals_the_naive_definition(text) -> None:
    weight, inputs = problem()
    hessian = inputs.T @ inputs
    new, mask = SparseGPT().prune(weight, hessian, Pattern.parse(text))
    expected, kept = naive(weight, hessian, Pattern.parse(text))
    assert torch.equal(mask, kept)
    torch.testing.assert_close(new.double(), expected, rtol=1e-3, atol=1e-5)  # ours sums in float32
    assert not torch.equal(new[mask], weight[mask])


@pytest.mark.parametrize("text", PATTERNS)
def test_its_output_error_is_below_wandas_and_wandas_below_magnitudes(text) -> None:
    weight, inputs = problem(seed=1, out=48)
    error = {}
    for name in ("magnitude", "wanda", "sparsegpt"):
        pruner = new_pruner(name)
        new, _ = pruner.prune(weight, statistic_of(pruner, inputs), Pattern.parse(text))
        error[name] = float((inputs @ (new - weight).T).norm())
    assert error["sparsegpt"] < 0.9 * error["wanda"]
    assert error["wanda"] < 0.9 * error["magnitude"]


def exact(mask, pattern) -> bool:
    if pattern.group is None:
        return bool(((~mask).sum(1) == round(pattern.sparsity * mask.shape[1])).all())
    return bool((mask.unflatten(1, (-1, pattern.group)).sum(2) == pattern.keep).all())


@pytest.mark.parametrize("name", PRUNERS)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**31), st.data())
@settings(deadline=None, max_examples=25)
def test_every_pruner_prunes_exactly_what_the_pattern_says(name, rows, groups, seed, data) -> None:
    group = data.draw(st.sampled_from([1, 3, 4, 8]))
    keep = data.draw(st.integers(1, group))
    fraction = data.draw(st.floats(0, 1))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    weight, inputs = problem(seed, rows, groups * group)
    weight = weight.to(dtype)
    weight[weight == 0] = 0.01  # zeros have a test of their own
    before = weight.clone()
    pruner = new_pruner(name)
    for pattern in (Pattern.parse(f"{keep}:{group}"), Pattern(fraction)):
        new, mask = pruner.prune(weight, statistic_of(pruner, inputs), pattern)
        assert exact(mask, pattern)
        assert new.dtype == dtype
        assert new.shape == mask.shape == weight.shape
        assert torch.isfinite(new).all()
        assert not new[~mask].any()
        assert pattern.group is None or conforms(new, keep, group) == 1.0
        assert torch.equal(weight, before)


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize(("text", "kept"), [("0%", True), ("4:4", True), ("100%", False)])
def test_the_ends_of_the_range_change_nothing_or_leave_nothing(name, text, kept) -> None:
    weight, inputs = problem()
    pruner = new_pruner(name)
    new, mask = pruner.prune(weight, statistic_of(pruner, inputs), Pattern.parse(text))
    assert bool(mask.all()) == kept
    assert torch.equal(new, weight if kept else torch.zeros_like(weight))


@pytest.mark.parametrize("text", ["50%", "2:4"])
def test_zeros_of_the_base_go_first_and_stay_zero_under_compensation(text) -> None:
    weight, inputs = problem()
    pattern = Pattern.parse(text)
    weight[:6, ::4] = 0  # a quarter: less than asked
    weight[6:9, 10:140] = 0  # more than asked
    weight[9] = 0
    new, mask = SparseGPT().prune(weight, inputs.T @ inputs, pattern)
    assert not new[weight == 0].any()
    assert not mask[weight == 0].any()
    assert exact(mask[:6], pattern)
    if pattern.group is None:
        assert torch.equal(mask[6:10], weight[6:10] != 0)
    else:
        assert conforms(mask, 2, 4) == 1.0
        assert not mask[9].any()


@pytest.mark.parametrize("text", ["50%", "2:4"])
def test_weights_of_inputs_that_are_always_zero_go_first_and_are_not_touched_when_kept(text) -> None:
    weight, inputs = problem()
    inputs[:, [3, 140]] = 0
    hessian = inputs.T @ inputs * 1e-6  # small inputs: the unit diagonal of an unseen one is the largest there is
    new, mask = SparseGPT().prune(weight, hessian, Pattern.parse(text))
    assert not mask[:, [3, 140]].any()
    assert exact(mask, Pattern.parse(text))
    weight, inputs = problem()
    inputs[:, 128:] = 0  # more than goes
    new, mask = SparseGPT().prune(weight, inputs.T @ inputs, Pattern.parse("10%"))
    assert exact(mask, Pattern(0.1))
    assert mask[:, :128].all()
    assert torch.equal(new[:, :128], weight[:, :128])
    new, mask = SparseGPT().prune(weight, torch.zeros(IN, IN), Pattern.parse(text))
    assert exact(mask, Pattern.parse(text))
    assert torch.equal(new, weight * mask)


def test_rounding_to_bfloat16_is_all_that_separates_it_from_float32() -> None:
    weight, inputs = problem()
    weight = weight.to(torch.bfloat16)
    hessian = inputs.T @ inputs
    rounded, mask = SparseGPT().prune(weight, hessian, Pattern(0.5))
    exactly, same = SparseGPT().prune(weight.float(), hessian, Pattern(0.5))
    assert torch.equal(mask, same)
    assert torch.equal(rounded, exactly.to(torch.bfloat16))


def test_what_cannot_work_is_an_error() -> None:
    weight, inputs = problem()
    with pytest.raises(SQFTError, match="2:3 does not divide in=160"):
        SparseGPT().prune(weight, inputs.T @ inputs, Pattern.parse("2:3"))
    with pytest.raises(GridError, match="cannot be inverted with damping"):
        SparseGPT().prune(weight, -torch.eye(IN), Pattern(0.5))


# --- the factor is computed once for q, k and v ---


def test_the_same_hessian_is_inverted_once_and_another_anew() -> None:
    memo = FactorMemo(inverse_factor)
    _, inputs = problem()
    hessian = inputs.T @ inputs
    factor = memo(hessian)
    assert torch.equal(factor, inverse_factor(hessian))
    assert memo(hessian) is factor
    copy = hessian.clone()
    assert memo(copy) is not factor
    assert torch.equal(memo(copy), factor)
    del hessian  # its end must not drop the copy's factor
    gc.collect()
    assert memo(copy) is memo(copy)


def test_a_hessian_that_was_written_to_is_inverted_anew() -> None:
    memo = FactorMemo(inverse_factor)
    _, inputs = problem()
    hessian = inputs.T @ inputs
    factor = memo(hessian)
    hessian += torch.eye(IN) * 100
    assert torch.equal(memo(hessian), inverse_factor(hessian))
    assert not torch.equal(memo(hessian), factor)
    with torch.inference_mode():  # tensors that do not count what is written to them
        uncounted = inputs.T @ inputs
        first = memo(uncounted)
        uncounted += torch.eye(IN) * 100
        assert not torch.equal(memo(uncounted), first)


def test_the_factor_goes_with_its_hessian() -> None:
    memo = FactorMemo(inverse_factor)
    hessian = torch.eye(8)
    factor = weakref.ref(memo(hessian))
    del hessian
    gc.collect()
    assert factor() is None
