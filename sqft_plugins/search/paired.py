"""Means, their standard errors, and whether a difference is noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

Direction = Literal["minimize", "maximize"]
"""Which way a score is better."""
TOO_FAR = 2.0
"""Standard errors from 0 beyond which a difference is called one (about 5 % of equal ones are, by chance)."""


@dataclass(frozen=True)
class Mean:
    """stderr: the sample's standard deviation over the root of its size."""

    value: float
    stderr: float
    count: int

    @property
    def is_noise(self) -> bool:
        """Whether 0 is as good an explanation."""
        return abs(self.value) <= TOO_FAR * self.stderr


def mean(values: Sequence[float]) -> Mean:
    """Of at least one value; the standard error of one is infinite."""
    spread = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Mean(fmean(values), spread, len(values))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Mean:
    """The mean of a[i] - b[i]: two configurations on the same questions. Its standard error is that of the differences,
    without what makes a question hard for both."""
    return mean([x - y for x, y in zip(a, b, strict=True)])
