"""What the scores of each target are called."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path
from sqft_plugins.recipe.artefact import Artefact
from sqft_plugins.recipe.make import labels_of


def test_scores_of_folders_with_the_same_name_are_told_apart(tmp_path):
    folders = [Artefact(name, "model", tmp_path / name, step=False) for name in ("a/merge", "b/merge", "c/other")]
    step = Artefact("merge", "model", tmp_path / "out/merge")
    assert labels_of([step, folders[2]], {"merge"}) == ["merge", "other"]
    assert labels_of([step, *folders], {"merge"}) == ["merge", "a-merge", "b-merge", "c-other"]
    assert labels_of([folders[0]], {"merge"}) == ["a-merge"]  # the table has a row for the step
