"""What the report says of a demo whose numbers are known."""

from __future__ import annotations

import pytest

from sqft_plugins.demo.report import markdown, why_not_learned


def report(**accuracies: float) -> dict:
    """A report of stages with these accuracies, each ± 5 %."""
    known = {"perplexity": 20.0, "zeros_kept": 1.0, "bits_per_weight": 16.0, "bytes": 5, "seconds": 1.0}
    stages = [
        {"name": name, "accuracy": accuracy, "accuracy_stderr": 0.05, **known} for name, accuracy in accuracies.items()
    ]
    return {"stages": stages, "settings": {"steps": 28}, "task": "word problems"}


@pytest.mark.parametrize("tuned", [0.10, 0.33, 0.46])  # 2 · √2 · 5 % above 33 % are 47.1 %
def test_a_tuned_model_that_cannot_be_told_from_the_pruned_one_is_named(tuned: float) -> None:
    made = report(dense=0.9, pruned=0.33, tuned=tuned)

    warning = why_not_learned(made)
    assert warning is not None
    assert all(word in warning for word in (f"{tuned:.1%}", "33.0%", "28 steps", "--steps 56"))
    assert f"\n**{warning}**\n" in markdown(made)


@pytest.mark.parametrize(
    "accuracies", [{"pruned": 0.33, "tuned": 0.48}, {"dense": 0.3, "pruned": 0.33}, {"dense": 0.3}], ids=str
)
def test_a_demo_that_taught_its_task_or_is_not_there_yet_says_nothing(accuracies: dict[str, float]) -> None:
    made = report(**accuracies)

    assert why_not_learned(made) is None
    assert "**Tuned" not in markdown(made)
