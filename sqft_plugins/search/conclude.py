"""What a search ends with: its finalists on fresh questions, and the files of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from optuna.study import Study

from sqft_plugins.configurations import write_configuration
from sqft_plugins.errors import SQFTError
from sqft_plugins.progress import say
from sqft_plugins.search import output
from sqft_plugins.search.data import digest_of
from sqft_plugins.search.finals import as_dict, decide, finalists, pareto_front
from sqft_plugins.search.model import SearchedModel
from sqft_plugins.search.objective import Objective, Prepared
from sqft_plugins.search.samplers import choice_of
from sqft_plugins.search.settings import SearchSettings
from sqft_plugins.search.space import Choice, Space
from sqft_plugins.search.study import finished


def conclude(
    folder: Path,
    study: Study,
    space: Space,
    objective: Objective,
    searched: SearchedModel,
    parts: Mapping[str, Prepared],
    cost: Mapping[str, Any],
    settings: SearchSettings,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Chooses among the finalists and writes the files of `folder` → what to report, module → rank. parts: the
    "recheck" and "report" questions. Scores on them are kept in the study, too: none is computed twice."""
    trials = finished(study)
    if not trials:
        raise SQFTError("no configuration was evaluated: give more --minutes or --evaluations")
    against = settings.against
    price = cost[against or "parameters"]
    heuristic = space.choice("heuristic")
    candidates = finalists(trials, space, objective.direction, settings.finalists, against)
    say(f"{len(candidates)} finalists on {len(parts['recheck'].items)} fresh questions")
    fresh = partial(_fresh, study, space, objective, searched)
    outcome = decide(
        candidates,
        heuristic,
        partial(fresh, parts["recheck"]),
        partial(fresh, parts["report"]),
        objective.direction,
        None if against is None else lambda choice: price(space.expand(choice)),
    )
    by_choice = {choice_of(trial, space): trial for trial in trials}
    ranks = space.expand(outcome.choice)

    def row(choice: Choice) -> dict[str, Any]:
        trial = by_choice.get(choice)
        name = output.name_of(trial) if trial else "heuristic"
        seen = {"score": trial.user_attrs["score"], "stderr": trial.user_attrs["stderr"]} if trial else None
        return {"name": name, "search": seen, **{key: value(space.expand(choice)) for key, value in cost.items()}}

    front = pareto_front(trials, objective.direction, against or "parameters")
    marked = {
        name: (price(space.expand(choice)), by_choice[choice].user_attrs["score"])
        for name, choice in (("heuristic", heuristic), ("chosen", outcome.choice))
        if choice in by_choice
    }
    write_configuration(folder / output.CHOSEN, ranks)
    output.write_trials(folder / output.TRIALS, study.get_trials(deepcopy=False), space)
    output.write_front(folder, front, space)
    axes = (against or "parameters of the sub-adapter", f"{objective.name} ({objective.unit})")
    output.draw_front(folder / output.PICTURE, trials, front, marked, axes, against or "parameters")
    return {
        "finalists": [{**row(choice), "recheck": as_dict(found)} for choice, found in outcome.rechecked.items()],
        "chosen": {**row(outcome.choice), **as_dict(outcome.chosen), "ranks": ranks},
        "heuristic": {**row(heuristic), **as_dict(outcome.heuristic)},
        "difference": as_dict(outcome.difference),
        "verdict": outcome.verdict,
        "front": [trial.number for trial in front],
    }, ranks


def _fresh(
    study: Study, space: Space, objective: Objective, searched: SearchedModel, part: Prepared, choice: Choice
) -> list[float]:
    """The score of each of the part's questions, from the study where it is known there."""
    key = f"fresh:{digest_of(part.items, {'ranks': choice})}"  # a database takes 512 characters, not 200 ranks
    known = study.user_attrs.get(key)
    if known is None:
        known = searched.scores(space.expand(choice), objective, part)
        study.set_user_attr(key, known)
    return known
