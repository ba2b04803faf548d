"""What a search chooses from: groups, neighbours, and configurations that fit or do not."""

from __future__ import annotations

import pytest
from helpers_search import make_space

from sqft_plugins.configurations import read_configuration, write_configuration
from sqft_plugins.errors import OutputExistsError, SQFTError
from sqft_plugins.search.space import Space


def test_a_configuration_is_read_back_as_it_was_written(tmp_path) -> None:
    space = make_space(3)
    file = write_configuration(tmp_path / "c.json", space.expand((8, 4, 6)))
    assert space.choice(read_configuration(file)) == (8, 4, 6)
    with pytest.raises(OutputExistsError, match="--save"):
        write_configuration(file, {}, argument="--save")


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"model.layers.7.q_proj": 8, ".*": 4}, r"'model.layers.7.q_proj' matches no adapted module: did you mean"),
        ({".*": 5}, r"rank=5 is outside the search space: use one of \[8, 6, 4\]"),
        ({"q_proj": 8}, "configuration has no rank for"),
        ({".*": 4, "q_proj": 8}, r"gives model.layers.0 the ranks \[4, 8\], but its modules share one"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(ranks, message) -> None:
    with pytest.raises(SQFTError, match=message):
        make_space(3).choice(ranks)


def test_groups_are_blocks_or_modules() -> None:
    space = make_space(3)
    assert space.groups == ["model.layers.0", "model.layers.1", "model.layers.2"]
    assert space.size == 27
    each = Space(space.modules, space.rank_choices, "module")
    assert each.groups == list(space.modules)
    assert each.choice({".*": 4, "q_proj": 8}) == (8, 4) * 3


def test_neighbours_are_one_step_away() -> None:
    near = set(make_space(2).neighbours((4, 6)))
    assert near == {(6, 6), (4, 4), (4, 8)}
