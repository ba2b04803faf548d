"""How the next configuration is proposed: each method makes an Optuna sampler, whose storage makes it parallel and lets
it go on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqft_plugins.checkpoint.files import check_output
from sqft_plugins.configurations import FOLDER, check_configuration_name
from sqft_plugins.errors import DependencyError, SQFTError
from sqft_plugins.plugins import get_manager
from sqft_plugins.search.space import Space

if TYPE_CHECKING:
    from sqft_plugins.plugins.protocols import SearchMethod
    from sqft_plugins.search.settings import SearchSettings

POPULATION = 8
"""Of NSGA-II. Optuna's 50 would leave a search of 100 evaluations two generations."""
RANDOM_FIRST = 10
"""Evaluations, the starting configurations included, before TPE trusts what it has seen."""


def check_packages(draws: bool = True) -> None:
    """Raises DependencyError where a package is missing that a search needs. draws: it ends with a picture."""
    for package in ("optuna", "matplotlib") if draws else ("optuna",):
        if find_spec(package) is None:
            raise DependencyError(f"sqft search needs {package}: pip install 'sqft-plugins[search]'")


def check_outputs(
    adapter: Path, out: str | Path | None, study: str | Path | None, save: str | None, overwrite: bool
) -> Path | None:
    """The file to save to, or None. Raises DependencyError, OutputExistsError and SQFTError."""
    check_packages(draws=out is not None)
    if out is None:
        if study is None or save is not None:
            raise SQFTError("a worker needs --study, where the trials are, and takes no --save")
        return None
    check_output(out, overwrite)
    if save is None:
        return None
    return check_output(adapter / FOLDER / f"{check_configuration_name(save)}.json", overwrite, "--save")


def method_of(settings: SearchSettings, dashes: str = "--") -> SearchMethod:
    """The method that the settings name. dashes: what stands before an option's name where the user wrote it. Raises
    SQFTError for a method that is unknown, or that takes another number of objectives."""
    method: SearchMethod = get_manager().get("sqft_search_methods", settings.method, f"{dashes}method")
    named = f"{dashes}method {method.name}"
    if settings.against is None and 1 not in method.objectives:
        raise SQFTError(f"{named} needs a second objective: add {dashes}against parameters")
    if settings.against is not None and 2 not in method.objectives:
        raise SQFTError(f"{named} follows one objective: leave out {dashes}against, or use {dashes}method nsga2")
    return method


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
