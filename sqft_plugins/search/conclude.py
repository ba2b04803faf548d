"""What a search ends with: its finalists on fresh questions, and the files of its folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from optuna.study import Study

from sqft_plugins.configurations import write_configuration
from sqft_plugins.errors import SQFTError
from sqft_plugins.progress import say
from sqft_plugins.search import output
from sqft_plugins.search.finals import as_dict, decide, finalists, pareto_front
from sqft_plugins.search.ready import Costs, Search
from sqft_plugins.search.report import Conclusion
from sqft_plugins.search.samplers import choice_of
from sqft_plugins.search.space import Choice
from sqft_plugins.search.study import finished


def conclude(folder: Path, study: Study, search: Search, cost: Costs) -> Conclusion:
    """Chooses among the finalists and writes the files of `folder`. Scores on fresh questions are kept in the study,
    too: none is computed twice."""
    trials = finished(study)
    if not trials:
        raise SQFTError("no configuration was evaluated: give more --minutes or --evaluations")
    space, objective, against = search.space, search.objective, search.settings.against
    priced = against or "parameters"

    # choose
    candidates = finalists(trials, space, objective.direction, search.settings.finalists, against)
    say(f"{len(candidates)} finalists on {len(search.parts['recheck'].items)} fresh questions")
    heuristic = space.choice("heuristic")
    outcome = decide(
        candidates,
        heuristic,
        partial(search.fresh_scores, study, "recheck"),
        partial(search.fresh_scores, study, "report"),
        objective.direction,
        None if against is None else lambda choice: cost[against](space.expand(choice)),
    )
    by_choice = {choice_of(trial, space): trial for trial in trials}
    ranks = space.expand(outcome.choice)

    def row(choice: Choice) -> dict[str, Any]:
        trial = by_choice.get(choice)
        name = output.name_of(trial) if trial else "heuristic"
        seen = {"score": trial.user_attrs["score"], "stderr": trial.user_attrs["stderr"]} if trial else None
        return {"name": name, "search": seen, **{key: price(space.expand(choice)) for key, price in cost.items()}}

    # write
    front = pareto_front(trials, objective.direction, priced)
    marked = {
        name: (cost[priced](space.expand(choice)), by_choice[choice].user_attrs["score"])
        for name, choice in (("heuristic", heuristic), ("chosen", outcome.choice))
        if choice in by_choice
    }
    write_configuration(folder / output.CHOSEN, ranks)
    output.write_trials(folder / output.TRIALS, study.get_trials(deepcopy=False), space)
    output.write_front(folder, front, space)
    axes = (against or "parameters of the sub-adapter", f"{objective.name} ({objective.unit})")
    output.draw_front(folder / output.PICTURE, trials, front, marked, axes, priced)

    return Conclusion(
        finalists=[{**row(choice), "recheck": as_dict(found)} for choice, found in outcome.rechecked.items()],
        chosen={**row(outcome.choice), **as_dict(outcome.chosen), "ranks": ranks},
        heuristic={**row(heuristic), **as_dict(outcome.heuristic)},
        difference=as_dict(outcome.difference),
        verdict=outcome.verdict,
        front=[trial.number for trial in front],
    )
