"""Configurations out of the training's own record."""

from __future__ import annotations

import json
import math
import random

import pytest
from helpers_search import make_space

from sqft_plugins.errors import CheckpointError, MismatchError
from sqft_plugins.search.recorded import read_history
from sqft_plugins.tune.record import HISTORY


def write_history(folder, steps, modules):
    rows = [{"step": place, "loss": loss, "ranks": ranks} for place, (ranks, loss) in enumerate(steps, 1)]
    head = {"version": 1, "modules": modules}
    (folder / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in [head, *rows]))


def test_the_record_gives_the_ranks_with_the_lowest_loss_under_a_falling_trend(tmp_path) -> None:
    space, draw = make_space(3), random.Random(0)
    best, steps = (4, 8, 6), []
    for step in range(300):
        choice = tuple(draw.choice(space.ordered) for _ in range(3))
        off = 0.1 * sum(abs(a - b) for a, b in zip(choice, best, strict=True))
        ranks = [space.expand(choice)[module] for module in space.modules]
        steps.append((ranks, 5 * math.exp(-step / 60) + off + draw.gauss(0, 0.1)))
    write_history(tmp_path, steps, list(space.modules))
    history = read_history(tmp_path, space)
    assert history is not None
    assert history.lowest_loss(space) == best
    lowest_of_all = min(steps, key=lambda row: row[1])[0]  # without the trend it is one of the last steps, by chance
    assert steps.index((lowest_of_all, min(loss for _, loss in steps))) > 100
    counts = [[ranks[2 * group] for ranks, _ in steps] for group in range(3)]
    assert history.most_frequent(space) == tuple(max((8, 6, 4), key=drawn.count) for drawn in counts)


def test_a_record_that_does_not_belong_or_is_damaged_is_refused(tmp_path) -> None:
    space = make_space(2)
    assert read_history(tmp_path, space) is None
    write_history(tmp_path, [([8, 8], 1.0)], ["another.0", "another.1"])
    with pytest.raises(MismatchError, match="belongs to another adapter"):
        read_history(tmp_path, space)
    (tmp_path / HISTORY).write_text('{"version": 1, "modules": []}\n{"step": 1, "lo')
    with pytest.raises(CheckpointError, match="is damaged"):
        read_history(tmp_path, space)
    (tmp_path / HISTORY).write_text('{"version": 2, "modules": []}\n')
    with pytest.raises(CheckpointError, match="has version 2, this release reads 1"):
        read_history(tmp_path, space)
