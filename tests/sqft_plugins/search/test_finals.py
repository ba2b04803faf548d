"""The choice among the finalists, its score, and the verdict."""

from __future__ import annotations

import pytest

from sqft_plugins.search.finals import decide


def scores(table):
    """Choice → its scores; the calls are kept."""

    def score(choice):
        score.asked.append(choice)
        return table[choice]

    score.asked = []
    return score


def test_the_choice_is_made_by_the_recheck_and_its_score_told_from_the_report() -> None:
    recheck = scores({(6,): [1.0, 1.0, 1.2], (8,): [0.9, 0.9, 1.0], (4,): [0.5, 0.4, 0.6]})
    report = scores({(6,): [1.0, 1.1, 1.0], (8,): [0.0, 0.0, 0.0], (4,): [1.0, 1.2, 1.1]})
    outcome = decide([(6,), (8,), (4,)], (6,), recheck, report, "minimize")
    assert outcome.choice == (4,)  # though (8,) is the best on the report's questions
    assert report.asked == [(4,), (6,)]
    assert outcome.chosen.value == pytest.approx(1.1)
    assert outcome.difference.value == pytest.approx(0.2 / 3)
    assert outcome.verdict == "noise: not to be told from the heuristic"
    assert list(outcome.rechecked) == [(4,), (8,), (6,)]


@pytest.mark.parametrize(
    ("direction", "other", "verdict"),
    [
        ("minimize", [0.5, 0.6, 0.5], "better than the heuristic"),
        ("maximize", [0.5, 0.6, 0.5], "worse than the heuristic"),
        ("maximize", [1.5, 1.6, 1.5], "better than the heuristic"),
    ],
)
def test_the_verdict_knows_which_way_is_up(direction, other, verdict) -> None:
    recheck = scores({(6,): [0.0, 0.0], (8,): [-1.0, -1.0] if direction == "minimize" else [1.0, 1.0]})
    report = scores({(6,): [1.0, 1.0, 1.0], (8,): other})
    assert decide([(6,), (8,)], (6,), recheck, report, direction).verdict == verdict


def test_where_the_heuristic_wins_it_is_said() -> None:
    outcome = decide(
        [(6,), (8,)], (6,), scores({(6,): [0.0, 0.1], (8,): [1.0, 1.1]}), scores({(6,): [2.0, 2.5]}), "minimize"
    )
    assert outcome.choice == (6,)
    assert outcome.verdict == "the same as the heuristic"


def test_against_a_cost_the_cheapest_within_one_standard_error_is_chosen() -> None:
    recheck = scores({(8,): [1.0, 1.0, 1.0, 1.0], (6,): [1.3, 0.8, 1.1, 0.9], (4,): [1.5, 1.6, 1.5, 1.6]})
    report = scores({(8,): [1.0, 1.0], (6,): [1.0, 1.1]})
    outcome = decide([(8,), (6,), (4,)], (6,), recheck, report, "minimize", cost=lambda choice: choice[0])
    assert outcome.choice == (6,)  # 0.025 ± 0.11 behind (8,); (4,) is 0.55 ± 0.03 behind
