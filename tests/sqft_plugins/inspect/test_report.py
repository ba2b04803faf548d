"""What a weight shows by itself, and layers summed up."""

from __future__ import annotations

import pytest
import torch

from sqft_plugins.errors import SQFTError
from sqft_plugins.inspect import inspect_path
from sqft_plugins.inspect.report import conforming, total_of, zeros_of
from sqft_plugins.pattern import asked_patterns


def naive_conformance(weight: torch.Tensor, keep: int, group: int) -> float:
    groups = [row[start : start + group] for row in weight.tolist() for start in range(0, len(row), group)]
    return sum(sum(value != 0 for value in values) <= keep for values in groups) / len(groups)


def test_what_a_weight_shows_equals_a_loop_over_it():
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    weight[weight.abs() < 0.7] = 0
    weight[0, :5] = torch.tensor([float("nan"), float("inf"), 0, 0, -0.0])
    shown = zeros_of(weight, asked_patterns("3:8"))
    assert (shown["weights"], shown["not_finite"]) == (144, 2)
    assert shown["zeros"] == sum(value == 0 for row in weight.tolist() for value in row) / 144
    assert list(shown["patterns"]) == ["1:4", "3:8", "2:4", "4:8"]  # the strictest first
    for name, fraction in shown["patterns"].items():
        keep, group = map(int, name.split(":"))
        assert fraction == pytest.approx(naive_conformance(weight, keep, group), abs=1e-12), name


def test_a_pattern_that_does_not_divide_is_left_out_of_the_layer_and_of_the_total():
    wide, narrow = torch.zeros(2, 8), torch.ones(2, 4)
    fields = {"pruned": None, "bits_per_weight": 16.0, "dtype": "float32", "gguf": "F32", "gguf_exact": True}
    rows = [{**zeros_of(weight, asked_patterns(None)), **fields} for weight in (wide, narrow)]
    assert rows[0]["patterns"] == {"1:4": 1, "2:4": 1, "4:8": 1}
    assert rows[1]["patterns"] == {"1:4": 0, "2:4": 0}
    total = total_of(rows)
    assert total["patterns"] == {"1:4": 16 / 24, "2:4": 16 / 24, "4:8": 1}
    assert total["bytes"] == 48


def test_the_strictest_pattern_is_named():
    assert conforming({"1:4": 0.5, "2:4": 1.0, "4:8": 1.0}) == "2:4"
    assert conforming({"1:4": 0.5}) == ""


@pytest.mark.parametrize("pattern", ["0.5", "4", "5:4", "x"])
def test_a_pattern_that_is_no_n_m_is_refused(pattern, tiny_llama):
    with pytest.raises(SQFTError, match=r"pattern|N:M"):
        inspect_path(tiny_llama, pattern)
