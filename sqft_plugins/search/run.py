"""`sqft search` as a function: checks, evaluates, re-checks, writes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.checkpoint import check_output, write_folder
from sqft_plugins.configurations import FOLDER, check_configuration_name, read_configuration, write_configuration
from sqft_plugins.errors import DependencyError, SQFTError
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import SearchMethod, Task
from sqft_plugins.progress import Steps, say
from sqft_plugins.search import cost as costs
from sqft_plugins.search.data import digest_of, split_items
from sqft_plugins.search.model import SearchedModel
from sqft_plugins.search.objective import AnswerAccuracy, AnswerLikelihood, Objective, Prepared, prepare
from sqft_plugins.search.paired import Direction, mean
from sqft_plugins.search.recorded import read_history
from sqft_plugins.search.settings import EVALUATIONS, SearchSettings
from sqft_plugins.search.space import Choice, Space
from sqft_plugins.tune.adapters import check_adapter, tuner_of

if TYPE_CHECKING:
    from optuna.study import Study

    from sqft_plugins.search.study import Result


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
    """Searches the ranks of a super-adapter over its base; writes the folder `out` → its `search.json`.

    task: questions that the adapter was not trained on; split into those that the search sees and fresh ones. study: a
    file or database URL (default: `out`.journal), which other processes may share and a later call goes on with.
    Without `out` this process only evaluates for the study. starts: configuration files to begin with. save: also write
    the chosen configuration into the adapter folder under this name. grid: as for `Tuner.load`.

    Raises SQFTError, before the model is loaded, for whatever can be known by then: a fixed rank, a configuration with
    an unknown module or a rank outside the search space, too little data, a study of another adapter, model or task.
    """
    start = time.monotonic()
    folder = check_adapter(adapter)
    saved = _check_outputs(folder, out, study, save, overwrite)
    method: SearchMethod = get_manager().get("sqft_search_methods", settings.method, "--method")
    objectives = 1 if settings.against is None else 2
    if objectives not in method.objectives:
        raise SQFTError(
            f"--method {method.name} follows one objective: leave out --against, or use --method nsga2"
            if objectives == 2
            else f"--method {method.name} needs a second objective: add --against parameters"
        )
    space = adapter_space(folder, settings.share_rank)
    begin = _starting_points(method, space, folder, starts)
    if settings.against == "latency":
        costs.check_latency(folder)
    place = Path(grid) if grid else None
    searched = SearchedModel(model_path, folder, tuner_of(folder), place, settings.dtype, settings.accelerate)
    split = split_items(task.items(), settings.subset, settings.fresh, settings.seed)
    objective = _objective(settings, task)
    ready = partial(prepare, tokenizer=searched.tokenizer, max_length=searched.context, batch_size=settings.batch_size)
    parts = {name: ready(getattr(split, name)) for name in ("search", "recheck", "report")}
    identity = {
        **searched.identity(),
        "set of questions": digest_of(split.search, {"task": task.name}),
        "objective": settings.objective,
        "cost": settings.against or "none",
        "share_rank": space.share_rank,
    }

    from sqft_plugins.search.samplers import Unseen
    from sqft_plugins.search.study import Budget, finished, open_study, run_trials

    seed = settings.seed + (os.getpid() if out is None else 0)  # two processes that draw alike would propose alike
    sampler = Unseen(method.sampler(space, seed), space, seed)
    target = study or f"{out}.journal"
    directions: list[Direction] = [objective.direction, "minimize"]
    opened = open_study(target, identity, directions[:objectives], sampler)
    cost = _costs(opened, folder, space, settings, searched)
    budget = Budget(settings.evaluations, settings.minutes)
    if settings.evaluations is None and settings.minutes is None and method.proposes:
        budget = Budget(EVALUATIONS)
    evaluate = partial(_evaluate, searched, objective, parts["search"], cost, settings.against)
    total = budget.evaluations if method.proposes else len(begin)
    with _told(f"search by {method.name}", total, len(finished(opened))) as tell:
        ended = run_trials(
            opened, space, evaluate, budget, starts=begin, proposes=method.proposes,
            done=lambda trial: tell(f"{objective.name} {trial.user_attrs['score']:.4f}"),
        )  # fmt: skip
    after = finished(opened)
    result = {
        "model": str(model_path),
        "adapter": str(adapter),
        "task": task.name,
        "study": str(target),
        "settings": {**settings.model_dump(), "share_rank": space.share_rank, "dtype": identity["dtype"]},
        "unit": objective.unit,
        "direction": objective.direction,
        "space": {"groups": len(space.groups), "rank_choices": space.ordered, "size": space.size},
        "evaluations": len(after),
        "evaluations_of_this_call": searched.runs,
        "ended": ended,
    }
    if out is None:
        return {**result, "seconds": time.monotonic() - start}

    from sqft_plugins.search.conclude import conclude

    with write_folder(out, overwrite) as target_folder:
        found, ranks = conclude(target_folder, opened, space, objective, searched, parts, cost, settings)
        result |= {"out": str(out), **found, "seconds": time.monotonic() - start}
        (target_folder / "search.json").write_text(json.dumps(result, indent=2) + "\n")
    if saved is not None:
        write_configuration(saved, ranks, overwrite, "--save")
        result["saved"] = str(saved)
    return result


@contextmanager
def _told(what: str, total: int | None, done: int) -> Iterator[Callable[[str], None]]:
    """What to call after each evaluation: of `total`, or of nobody knows how many."""
    if total is None:
        yield lambda text: say(f"{what}: {text}")
    else:
        with Steps(what, total, done) as steps:
            yield steps.step


def adapter_space(adapter: Path, share_rank: str | None = None) -> Space:
    """The search space of an adapter folder. Raises SQFTError where its rank is fixed."""
    modules, choices = tuner_of(adapter).search_space(adapter)
    if len(choices) < 2:
        raise SQFTError(
            f"adapter {adapter} has the fixed rank {choices[0]}: there is nothing to search, train one with "
            "--rank-choices"
        )
    trained = AdapterFolder(adapter).config.get("share_rank", "module")
    return Space(sorted(modules, key=_natural), choices, share_rank or trained)


def _natural(name: str) -> list[str]:
    """Block 10 stands behind block 9."""
    return [part.zfill(9) if part.isdigit() else part for part in name.split(".")]


def _check_outputs(
    adapter: Path, out: str | Path | None, study: str | Path | None, save: str | None, overwrite: bool
) -> Path | None:
    """The file to save to, or None. Raises DependencyError, OutputExistsError and SQFTError."""
    if find_spec("optuna") is None:
        raise DependencyError("sqft search needs optuna: pip install 'sqft-plugins[search]'")
    if out is None:
        if study is None or save is not None:
            raise SQFTError("a worker needs --study, the one that it works for, and takes no --save")
        return None
    if find_spec("matplotlib") is None:
        raise DependencyError("sqft search draws its front with matplotlib: pip install 'sqft-plugins[search]'")
    check_output(out, overwrite)
    if save is None:
        return None
    return check_output(adapter / FOLDER / f"{check_configuration_name(save)}.json", overwrite, "--save")


def _starting_points(method: SearchMethod, space: Space, adapter: Path, files: Sequence[str]) -> dict[str, Choice]:
    history = read_history(adapter, space)
    known = {name: space.choice(name) for name in ("heuristic", "max", "min")}
    if history is not None:
        known |= {"most-frequent": history.most_frequent(space), "lowest-loss": history.lowest_loss(space)}
    found = {name: known[name] for name in method.starts if name in known}
    for file in files:
        try:
            found[Path(file).stem] = space.choice(read_configuration(file))
        except SQFTError as error:
            raise SQFTError(f"--start {file}: {error}") from error
    return found


def _objective(settings: SearchSettings, task: Task) -> Objective:
    return AnswerLikelihood() if settings.objective == "nll" else AnswerAccuracy(task, settings.batch_size)


def _costs(
    study: Study, adapter: Path, space: Space, settings: SearchSettings, searched: SearchedModel
) -> dict[str, Any]:
    """Name → cost function. Latencies are measured once a study, so that its trials can be compared."""
    shapes = costs.adapter_shapes(adapter)
    found: dict[str, Any] = {"parameters": costs.Parameters(shapes)}
    if settings.against == "latency":
        table = study.user_attrs.get("latency")
        if table is None:
            import torch

            dtype = searched.dtype if isinstance(searched.dtype, torch.dtype) else torch.float32
            table = costs.Latency.measure(shapes, space, dtype)
            study.set_user_attr("latency", table)
        found["latency"] = costs.Latency(shapes, table)
    return found


def _evaluate(
    searched: SearchedModel,
    objective: Objective,
    prepared: Prepared,
    cost: Mapping[str, Any],
    against: str | None,
    ranks: dict[str, int],
) -> Result:
    from sqft_plugins.search.study import Result

    score = mean(searched.scores(ranks, objective, prepared))
    price = {name: function(ranks) for name, function in cost.items()}
    values = [score.value, *([] if against is None else [cast(float, price[against])])]
    return Result(values, {"score": score.value, "stderr": score.stderr, **price})
