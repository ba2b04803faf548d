"""The smooth line of the losses."""

from __future__ import annotations

from sqft_plugins.tune.loss_plot import smoothed


def test_the_smooth_line_is_the_mean_around_each_step() -> None:
    assert smoothed([1.0, 2.0, 6.0]) == [1.5, 3.0, 4.0]
    assert smoothed([4.0]) == [4.0]
