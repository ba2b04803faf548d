"""Paired differences and their standard errors."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from sqft_plugins.search.paired import mean, paired_difference


def test_the_paired_difference_leaves_out_what_is_hard_for_both() -> None:
    draw = random.Random(0)
    hard = [draw.gauss(3, 2) for _ in range(200)]
    a, b = ([value + draw.gauss(shift, 0.1) for value in hard] for shift in (0.1, 0.0))
    found = paired_difference(a, b)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    spread = math.sqrt(sum((d - fmean(differences)) ** 2 for d in differences) / 199)
    assert found.value == pytest.approx(fmean(a) - fmean(b))
    assert found.stderr == pytest.approx(spread / math.sqrt(200))
    assert not found.is_noise
    assert abs(mean(a).value - mean(b).value) < 2 * mean(a).stderr  # unpaired, it would have been noise
