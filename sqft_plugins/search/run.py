"""`sqft search` as a function: checks, evaluates, re-checks, writes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.checkpoint import write_folder
from sqft_plugins.configurations import read_configuration, write_configuration
from sqft_plugins.errors import SQFTError, within
from sqft_plugins.plugins.protocols import SearchMethod, Task
from sqft_plugins.progress import Steps, say
from sqft_plugins.search import cost as costs
from sqft_plugins.search.data import split_items
from sqft_plugins.search.methods import check_outputs, method_of
from sqft_plugins.search.model import SearchedModel
from sqft_plugins.search.objective import AnswerAccuracy, AnswerLikelihood, prepare
from sqft_plugins.search.paired import Direction
from sqft_plugins.search.ready import Search
from sqft_plugins.search.recorded import read_history
from sqft_plugins.search.report import SearchReport
from sqft_plugins.search.settings import EVALUATIONS, SearchSettings
from sqft_plugins.search.space import Choice, Space


def search_adapter(
    model_path: str | Path,
    adapter: str | Path,
    task: Task,
    settings: SearchSettings,
    *,
    out: str | Path | None = None,
    study: str | Path | None = None,
    starts: Sequence[str] = (),
    save: str | None = None,
    grid: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Searches the ranks of a super-adapter over its base; writes the folder `out` → its `search.json`, a
    `SearchReport`.

    task: questions that the adapter was not trained on; split into those that the search sees and fresh ones.
    out: None for a process that only evaluates for the study of another.
    study: a file or database URL (default: `out`.journal), which other processes may share and a later call goes on
        with.
    starts: configuration files to begin with.
    save: also write the chosen configuration into the adapter folder under this name.
    grid: as for `Tuner.load`.

    Raises SQFTError, before the model is loaded, for whatever can be known by then: a fixed rank, a configuration with
    an unknown module or a rank outside the search space, too little data, a study of another adapter, model or task.
    """
    start = time.monotonic()

    # everything that can be refused
    searched_adapter = SavedAdapter(adapter)
    folder = searched_adapter.path
    saved = check_outputs(folder, out, study, save, overwrite)
    method = method_of(settings)
    space = adapter_space(folder, settings.share_rank)
    begin = _starting_points(method, space, folder, starts)
    if settings.against == "latency":
        costs.check_latency(folder)
    codes = Path(grid) if grid else None
    searched = SearchedModel(model_path, searched_adapter, codes, settings.dtype, settings.accelerate)
    search = _ready(searched, task, space, settings)
    identity = search.identity(task.name)

    from sqft_plugins.search.samplers import Unseen
    from sqft_plugins.search.study import Budget, finished, open_study, run_trials

    seed = settings.seed + (os.getpid() if out is None else 0)  # two processes that draw alike would propose alike
    sampler = Unseen(method.sampler(space, seed), space, seed)
    place = study or f"{out}.journal"
    directions: list[Direction] = [search.objective.direction, "minimize"]
    directions = directions[: 1 if settings.against is None else 2]
    opened = open_study(place, identity, directions, sampler)

    # work
    cost = search.costs(opened, folder)
    limited = settings.evaluations is not None or settings.minutes is not None or not method.proposes
    budget = Budget(settings.evaluations if limited else EVALUATIONS, settings.minutes)
    total = budget.evaluations if method.proposes else len(begin)
    with _progress(f"search by {method.name}", total, len(finished(opened))) as progress:
        ended = run_trials(
            opened,
            space,
            lambda ranks: search.evaluate(cost, ranks),
            budget,
            starts=begin,
            against=settings.against,
            proposes=method.proposes,
            done=lambda trial: progress(f"{search.objective.name} {trial.user_attrs['score']:.4f}"),
        )

    # report
    report = SearchReport(
        model=str(model_path),
        adapter=str(adapter),
        task=task.name,
        study=str(place),
        settings={**settings.model_dump(), "share_rank": space.share_rank, "dtype": identity["dtype"]},
        unit=search.objective.unit,
        direction=search.objective.direction,
        space={"groups": len(space.groups), "rank_choices": space.ordered, "size": space.size},
        evaluations=len(finished(opened)),
        evaluations_of_this_call=searched.runs,
        ended=ended,
    )
    if out is None:
        return report.as_dict(time.monotonic() - start)

    from sqft_plugins.search.conclude import conclude

    with write_folder(out, overwrite) as target:
        report.out = str(out)
        report.conclusion = conclude(target, opened, search, cost)
        written = report.as_dict(time.monotonic() - start)
        (target / "search.json").write_text(json.dumps(written, indent=2) + "\n")
    if saved is not None:
        write_configuration(saved, report.conclusion.chosen["ranks"], overwrite, "--save")
        written["saved"] = str(saved)
    return written


@contextmanager
def _progress(what: str, total: int | None, done: int) -> Iterator[Callable[[str], None]]:
    """What to call after each evaluation: of `total`, or of nobody knows how many."""
    if total is None:
        yield lambda text: say(f"{what}: {text}")
    else:
        with Steps(what, total, done) as steps:
            yield steps.step


def adapter_space(adapter: Path, share_rank: str | None = None) -> Space:
    """The search space of an adapter folder. Raises SQFTError where its rank is fixed."""
    saved = SavedAdapter(adapter)
    modules, choices = saved.search_space
    if len(choices) < 2:
        raise SQFTError(
            f"adapter {adapter} has the fixed rank {choices[0]}: there is nothing to search, train one with "
            "--rank-choices"
        )
    trained = saved.folder.config.get("share_rank", "module")
    return Space(sorted(modules, key=_natural), choices, share_rank or trained)


def _natural(name: str) -> list[str]:
    """Block 10 stands behind block 9."""
    return [part.zfill(9) if part.isdigit() else part for part in name.split(".")]


def _starting_points(method: SearchMethod, space: Space, adapter: Path, files: Sequence[str]) -> dict[str, Choice]:
    history = read_history(adapter, space)
    known = {name: space.choice(name) for name in ("heuristic", "max", "min")}
    if history is not None:
        known |= {"most-frequent": history.most_frequent(space), "lowest-loss": history.lowest_loss(space)}
    found = {name: known[name] for name in method.starts if name in known}
    for file in files:
        with within(f"--start {file}"):
            found[Path(file).stem] = space.choice(read_configuration(file))
    return found


def _ready(searched: SearchedModel, task: Task, space: Space, settings: SearchSettings) -> Search:
    """Raises SQFTError for too few questions, and for a question that is longer than the model's context."""
    split = split_items(task.items(), settings.subset, settings.fresh, settings.seed)
    parts = {
        name: prepare(items, searched.tokenizer, searched.context, settings.batch_size) for name, items in split.items()
    }
    objective = AnswerLikelihood() if settings.objective == "nll" else AnswerAccuracy(task, settings.batch_size)
    return Search(space, objective, searched, parts, settings)
