"""Settings that are unknown or impossible."""

from __future__ import annotations

import pytest

from sqft_plugins.errors import SQFTError
from sqft_plugins.tune import AdapterSettings, TrainSettings


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainSettings, {"stepz": 3}, r"TrainSettings has no key 'stepz': did you mean 'steps'\?"),
        (TrainSettings, {"steps": -1}, r"steps=-1: input should be greater than or equal to 0"),
        (TrainSettings, {"learning_rate": "fast"}, r"learning_rate='fast': input should be a valid number"),
        (AdapterSettings, {"rank": 8, "rank_choices": [16, 8]}, r"maximum 16 but r=8"),
    ],
)
def test_impossible_settings_are_named(kind, values, message) -> None:
    with pytest.raises(SQFTError, match=message):
        kind.make(values)
