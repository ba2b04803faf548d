"""The folder of a search: the chosen configuration, every trial as a row, the front as table, picture and files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial

from sqft_plugins.configurations import write_configuration
from sqft_plugins.search.samplers import choice_of
from sqft_plugins.search.space import Space

COLUMNS = ("score", "stderr", "parameters", "latency", "seconds")
CHOSEN, TRIALS, FRONT, PICTURE = "configuration.json", "trials.csv", "pareto.csv", "pareto.png"
FRONT_FOLDER = "front"


def name_of(trial: FrozenTrial) -> str:
    """ "heuristic" and its like, or "trial 17"."""
    return trial.user_attrs.get("origin") or f"trial {trial.number}"


def write_trials(file: Path, trials: Sequence[FrozenTrial], space: Space) -> None:
    """One row a trial, in their order: number, state, origin, scores, and the rank of each group."""
    with file.open("w", newline="") as handle:
        rows, columns = csv.writer(handle), _columns(trials)
        rows.writerow(["number", "state", "origin", *columns, *space.groups])
        for trial in trials:
            choice = choice_of(trial, space) or ()
            more = [trial.user_attrs.get(column, "") for column in columns]
            origin = trial.user_attrs.get("origin", "")
            rows.writerow([trial.number, trial.state.name.lower(), origin, *more, *choice])


def write_front(folder: Path, front: Sequence[FrozenTrial], space: Space) -> None:
    """`pareto.csv`, cheapest first, and a configuration file for each of its rows."""
    (folder / FRONT_FOLDER).mkdir()
    with (folder / FRONT).open("w", newline="") as handle:
        rows, columns = csv.writer(handle), _columns(front)
        rows.writerow(["number", "name", *columns, "file"])
        for trial in front:
            choice = choice_of(trial, space)
            assert choice is not None
            file = f"{FRONT_FOLDER}/trial-{trial.number}.json"
            write_configuration(folder / file, space.expand(choice))
            more = [trial.user_attrs.get(column, "") for column in columns]
            rows.writerow([trial.number, name_of(trial), *more, file])


def _columns(trials: Sequence[FrozenTrial]) -> list[str]:
    """Those that any of the trials has."""
    return [column for column in COLUMNS if any(column in trial.user_attrs for trial in trials)]


def draw_front(
    file: Path,
    trials: Sequence[FrozenTrial],
    front: Sequence[FrozenTrial],
    marked: Mapping[str, tuple[float, float]],
    axes_names: tuple[str, str],
    cost: str,
) -> None:
    """Every trial by cost and score, the front as a line. marked: label → (cost, score), drawn large."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()

    def points(of: Sequence[FrozenTrial]) -> tuple[list[float], list[float]]:
        return [trial.user_attrs[cost] for trial in of], [trial.user_attrs["score"] for trial in of]

    errors = [trial.user_attrs.get("stderr", 0.0) for trial in trials]
    axes.errorbar(*points(trials), yerr=errors, fmt="o", color="0.6", ecolor="0.9", markersize=4, label="trials")
    axes.plot(*points(front), "o-", color="tab:blue", markersize=5, label="front")
    for (label, place), look in zip(marked.items(), (("s", "tab:orange"), ("*", "tab:red")), strict=False):
        axes.plot([place[0]], [place[1]], look[0], color=look[1], markersize=10, label=label, zorder=4)
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    axes.set_title("what the search saw; bars: one standard error", fontsize=10)
    axes.legend()
    figure.savefig(file, dpi=120)
