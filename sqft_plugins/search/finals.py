"""The finalists of a search on questions that it never saw, and the score that is reported.

The best of many noisy scores is partly luck. So the finalists are scored anew on the re-check's questions, these choose
one, and its reported score comes from a third part that no choice was made by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from sqft_plugins.search.paired import Direction, Mean, mean, paired_difference
from sqft_plugins.search.samplers import choice_of
from sqft_plugins.search.space import Choice, Space

Score = Callable[[Choice], Sequence[float]]
"""The score of each question with a configuration."""


@dataclass(frozen=True)
class Outcome:
    """chosen and heuristic: on the report's questions. difference: chosen - heuristic, paired, on these. rechecked:
    finalist → its score on the re-check's questions, best first."""

    choice: Choice
    chosen: Mean
    heuristic: Mean
    difference: Mean
    direction: Direction
    rechecked: Mapping[Choice, Mean]

    @property
    def verdict(self) -> str:
        if self.difference.value == 0 and self.difference.stderr == 0:
            return "the same as the heuristic"
        if self.difference.is_noise:
            return "noise: not to be told from the heuristic"
        gain = self.difference.value < 0 if self.direction == "minimize" else self.difference.value > 0
        return "better than the heuristic" if gain else "worse than the heuristic"


def pareto_front(trials: Sequence[FrozenTrial], direction: Direction, cost: str) -> list[FrozenTrial]:
    """The trials that no other beats in both score and cost, cheapest first; of equal ones, the first."""
    sign = 1 if direction == "minimize" else -1
    front: list[FrozenTrial] = []
    for trial in sorted(trials, key=lambda t: (t.user_attrs[cost], sign * t.user_attrs["score"], t.number)):
        if not front or sign * trial.user_attrs["score"] < sign * front[-1].user_attrs["score"]:
            front.append(trial)
    return front


def finalists(
    trials: Sequence[FrozenTrial], space: Space, direction: Direction, count: int, cost: str | None
) -> list[Choice]:
    """The heuristic, and the `count` best of the trials by score: of all, or with a cost, of the front."""
    sign = 1 if direction == "minimize" else -1
    pool = trials if cost is None else pareto_front(trials, direction, cost)
    best = sorted(pool, key=lambda trial: (sign * trial.user_attrs["score"], trial.number))[:count]
    choices = [choice for trial in best if (choice := choice_of(trial, space)) is not None]
    return list(dict.fromkeys([space.choice("heuristic"), *choices]))


def decide(
    candidates: Sequence[Choice],
    heuristic: Choice,
    recheck: Score,
    report: Score,
    direction: Direction,
    cost: Callable[[Choice], float] | None = None,
) -> Outcome:
    """Chooses by the re-check: the best, or with a cost the cheapest that is within one standard error of the best (of
    the paired difference). Then scores the chosen one and the heuristic on the report's questions.

    candidates: the finalists, the heuristic among them.
    recheck, report: the scores of a configuration on the questions of that part.
    cost: of a configuration, None where the score alone counts.
    """
    sign = 1 if direction == "minimize" else -1
    values = {choice: list(recheck(choice)) for choice in candidates}
    rechecked = {choice: mean(found) for choice, found in values.items()}
    ranked = sorted(candidates, key=lambda choice: sign * rechecked[choice].value)

    chosen = ranked[0]
    if cost is not None:
        behind = {choice: paired_difference(values[choice], values[chosen]) for choice in ranked}
        close = [choice for choice in ranked if abs(behind[choice].value) <= behind[choice].stderr]
        chosen = min(close, key=cost)

    ours, theirs = list(report(chosen)), list(report(heuristic))
    return Outcome(
        chosen,
        mean(ours),
        mean(theirs),
        paired_difference(ours, theirs),
        direction,
        {choice: rechecked[choice] for choice in ranked},
    )


def as_dict(value: Mean) -> dict[str, Any]:
    return {"score": value.value, "stderr": value.stderr, "questions": value.count}
