"""How the next configuration is proposed: each method makes an Optuna sampler, whose storage makes it parallel and lets
it go on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqft_plugins.search.space import Space

POPULATION = 8
"""Of NSGA-II. Optuna's 50 would leave a search of 100 evaluations two generations."""
RANDOM_FIRST = 10
"""Evaluations, the starting configurations included, before TPE trusts what it has seen."""


@dataclass(frozen=True)
class Method:
    """A `SearchMethod`. proposes: whether it goes on after its starting configurations."""

    name: str
    sampler: Callable[[Space, int], Any]
    objectives: tuple[int, ...] = (1, 2)
    starts: tuple[str, ...] = ("heuristic", "max", "min", "most-frequent", "lowest-loss")
    proposes: bool = True


def _hill_climber(space: Space, seed: int) -> Any:
    from sqft_plugins.search.samplers import HillClimber

    return HillClimber(space, seed)


def _optuna(name: str, **options: Any) -> Callable[[Space, int], Any]:
    """Optuna's sampler of that name."""

    def make(space: Space, seed: int) -> Any:
        import optuna

        return getattr(optuna.samplers, name)(seed=seed, **options)

    return make


HILL_CLIMBING = Method("hill-climbing", _hill_climber, objectives=(1,), starts=("heuristic",))
"""From the heuristic to the best neighbour, and on from there (SQFT, arXiv 2410.03750; Shears, arXiv 2404.10934).
Follows the score alone, so it takes one objective."""
TPE = Method("tpe", _optuna("TPESampler", n_startup_trials=RANDOM_FIRST))
"""Optuna's tree-structured Parzen estimator."""
NSGA2 = Method("nsga2", _optuna("NSGAIISampler", population_size=POPULATION))
"""Optuna's NSGA-II: the front of score against cost, for `--against`."""
FIXED = Method("fixed", _optuna("RandomSampler"), proposes=False)
"""Proposes nothing: the starting configurations (heuristic, max, min, and those recorded in training) alone."""
METHODS = (HILL_CLIMBING, TPE, NSGA2, FIXED)
