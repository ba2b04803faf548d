"""What a search keeps of its last scores."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sqft_plugins.plugins.protocols import Item
from sqft_plugins.search.settings import SearchSettings
from sqft_plugins.search.space import Space


def test_fresh_scores_of_a_large_model_are_kept_under_a_name_that_a_database_takes() -> None:
    optuna = pytest.importorskip("optuna")
    from sqft_plugins.search.ready import Search

    space = Space([f"model.layers.{i}.q_proj" for i in range(300)], (128, 64), "module")
    study, runs = optuna.create_study(), []
    searched = SimpleNamespace(scores=lambda *asked: runs.append(asked) or [0.5])
    search = Search(space, None, searched, {"recheck": SimpleNamespace(items=[Item("a", "b")])}, SearchSettings())
    for rank in (128, 64, 128):
        assert search.fresh_scores(study, "recheck", (rank,) * 300) == [0.5]
    assert len(runs) == 2
    assert all(len(key) <= 512 for key in study.user_attrs)
