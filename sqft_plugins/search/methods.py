"""How the next configuration is proposed: each method makes an Optuna sampler, whose storage makes it parallel and lets
it go on after a stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqft_plugins.search.space import Space

POPULATION = 8
"""Of NSGA-II. Optuna's 50 would leave a search of 100 evaluations two generations."""
RANDOM_FIRST = 10
"""Evaluations, the starting configurations included, before TPE trusts what it has seen."""


@dataclass(frozen=True)
class Fixed:
    """Proposes nothing: the starting configurations (heuristic, max, min, and those recorded in training) alone."""

    name: str = "fixed"
    objectives: tuple[int, ...] = (1, 2)
    starts: tuple[str, ...] = ("heuristic", "max", "min", "most-frequent", "lowest-loss")
    proposes: bool = False

    def sampler(self, space: Space, seed: int) -> Any:
        import optuna

        return optuna.samplers.RandomSampler(seed)


@dataclass(frozen=True)
class HillClimbing:
    """From the heuristic to the best neighbour, and on from there (SQFT, arXiv 2410.03750; Shears, arXiv 2404.10934).
    Follows the score alone, so it takes one objective."""

    name: str = "hill-climbing"
    objectives: tuple[int, ...] = (1,)
    starts: tuple[str, ...] = ("heuristic",)
    proposes: bool = True

    def sampler(self, space: Space, seed: int) -> Any:
        from sqft_plugins.search.samplers import HillClimber

        return HillClimber(space, seed)


@dataclass(frozen=True)
class TPE:
    """Optuna's tree-structured Parzen estimator."""

    name: str = "tpe"
    objectives: tuple[int, ...] = (1, 2)
    starts: tuple[str, ...] = Fixed.starts
    proposes: bool = True

    def sampler(self, space: Space, seed: int) -> Any:
        import optuna

        return optuna.samplers.TPESampler(n_startup_trials=RANDOM_FIRST, seed=seed)


@dataclass(frozen=True)
class NSGA2:
    """Optuna's NSGA-II: the front of score against cost, for `--against`."""

    name: str = "nsga2"
    objectives: tuple[int, ...] = (1, 2)
    starts: tuple[str, ...] = Fixed.starts
    proposes: bool = True

    def sampler(self, space: Space, seed: int) -> Any:
        import optuna

        return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)


METHODS = (HillClimbing(), TPE(), NSGA2(), Fixed())
