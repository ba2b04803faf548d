"""The smooth line of the losses."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # importlib mode keeps test folders off the path
from sqft_plugins.tune.loss_plot import smoothed


def test_the_smooth_line_is_the_mean_around_each_step() -> None:
    assert smoothed([1.0, 2.0, 6.0]) == [1.5, 3.0, 4.0]
    assert smoothed([4.0]) == [4.0]
