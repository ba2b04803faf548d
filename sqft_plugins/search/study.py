"""The study: every trial of a search, in Optuna's storage. Processes on one or many machines may work on one study, and
any of them may be killed: what is finished stays, what was not is done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sqft_plugins.checkpoint.files import check_writable
from sqft_plugins.errors import CheckpointError, MismatchError, SQFTError
from sqft_plugins.progress import say
from sqft_plugins.search.claim import claim, counted, release_dead
from sqft_plugins.search.paired import Direction
from sqft_plugins.search.samplers import distributions, taken
from sqft_plugins.search.space import Choice, Space

NAME = "sqft-search"
SQLITE = (".db", ".sqlite", ".sqlite3")
IDENTITY = "sqft"


@dataclass(frozen=True)
class Budget:
    """evaluations: of the whole study, finished and running, by whatever process. minutes: of this call."""

    evaluations: int | None = None
    minutes: float | None = None


def open_study(target: str | Path, identity: Mapping[str, Any], directions: Sequence[Direction], sampler: Any) -> Study:
    """The study at `target`, made where there is none.

    target: FILE, an Optuna journal or, where it ends so, SQLite; or a database URL; with #NAME for one of several
        studies there.
    identity: what the scores depend on.

    Raises MismatchError naming what a study made for something else differs in, SQFTError for a study with other
    objectives or of another program, CheckpointError for a file that is no study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place, _, name = str(target).partition("#")
    options: dict[str, Any] = {"study_name": name or NAME, "directions": list(directions), "load_if_exists": True}
    try:
        study = optuna.create_study(storage=_storage(place), sampler=sampler, **options)
        there_before = study.get_trials(deepcopy=False)  # before the identity, which another process writes first
    except SQFTError:
        raise
    except Exception as error:  # a damaged journal, no SQLite file, a database that does not answer
        last = str(error).strip().split("\n")[0][:160]
        raise CheckpointError(f"--study {target} cannot be opened ({type(error).__name__}: {last})") from error

    found = study.user_attrs.get(IDENTITY)
    if found is None and there_before:
        raise SQFTError(f"--study {target} holds trials of another program: choose another file or #NAME")
    if found is None:
        study.set_user_attr(IDENTITY, dict(identity))
    elif different := [key for key in identity if found.get(key) != identity[key]]:
        raise MismatchError(
            f"--study {target} was made with another {' and another '.join(different)}: choose another file or #NAME, "
            "or search as before"
        )

    there = [direction.name.lower() for direction in study.directions]
    if there != list(directions):
        raise SQFTError(f"--study {target} optimizes {there}, this search {list(directions)}: choose another file")
    return study


def _storage(place: str) -> BaseStorage:
    if "://" in place:
        return _database(place)
    file = Path(place)
    if file.is_dir():
        raise SQFTError(f"--study {place} is a folder, a file goes there: choose another path")
    check_writable(file, "--study")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix in SQLITE:
        return _database(f"sqlite:///{file.resolve()}")
    return JournalStorage(JournalFileBackend(str(file.resolve())))


def _database(url: str) -> RDBStorage:
    """A database in which one process alone can take a trial that waits.

    Optuna relies on SELECT FOR UPDATE for that, which SQLite does not have. Its transactions therefore lock the whole
    file before they read, and a process that finds it locked waits.
    """
    from sqlalchemy import event

    if not url.startswith("sqlite"):
        return _open_database(url)
    # isolation_level=None: the sqlite3 module begins no transaction of its own
    storage = _open_database(url, connect_args={"timeout": 60, "isolation_level": None})
    event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def _open_database(url: str, **options: Any) -> RDBStorage:
    """Tried again where two processes make its tables at the same moment: the one that comes second fails, and finds
    them there the next time."""
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    for seconds in (0.5, 1.0, 2.0, 4.0):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (IntegrityError, OperationalError, ProgrammingError):
            time.sleep(seconds)
    return RDBStorage(url, engine_kwargs=options)


def finished(study: Study) -> list[FrozenTrial]:
    """The evaluated trials, oldest first."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]


def run_trials(
    study: Study,
    space: Space,
    evaluate: Callable[[dict[str, int]], Mapping[str, float]],
    budget: Budget,
    *,
    starts: Mapping[str, Choice],
    against: str | None = None,
    proposes: bool = True,
    done: Callable[[FrozenTrial], None] = lambda trial: None,
) -> str:
    """Evaluates configurations until the budget is spent → why it ended. No configuration is evaluated twice, neither
    by this process nor by another that works on the study at the same time.

    evaluate: module → rank → the score and the costs, as the columns of the trial's row.
    starts: name → configuration, evaluated first.
    against: the cost that a study of two objectives optimizes beside the score.
    proposes: whether the study's sampler goes on after them.
    done: called with every trial that this process has finished.

    A trial that an exception ends is free to be evaluated again.
    """
    # what is to be evaluated first
    release_dead(study, space)
    there = taken(study.get_trials(deepcopy=False), space)
    for name, choice in starts.items():
        if choice not in there:
            params = dict(zip(space.groups, choice, strict=True))
            study.enqueue_trial(params, user_attrs={"origin": name})
            there.add(choice)

    end = None if budget.minutes is None else time.monotonic() + 60 * budget.minutes
    while True:
        # whether the search has ended
        trials = study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if budget.evaluations is not None and len(counted(trials)) >= budget.evaluations:
            return f"{budget.evaluations} evaluations are done"
        if end is not None and time.monotonic() >= end:
            return f"{budget.minutes:g} minutes are over"
        if not waiting and not proposes:
            return "all starting configurations are evaluated"
        if not waiting and len(taken(trials, space)) >= space.size:
            return f"all {space.size} configurations are evaluated"

        trial = study.ask(distributions(space))
        try:
            if not claim(study, trial, space, budget.evaluations, proposes):
                study.tell(trial, state=TrialState.FAIL)
                continue
            choice = tuple(trial.params[group] for group in space.groups)
            start = time.monotonic()
            found = evaluate(space.expand(choice))
            for key, value in {**found, "seconds": time.monotonic() - start}.items():
                trial.set_user_attr(key, value)
            done(study.tell(trial, [found[name] for name in ("score", against) if name is not None]))
        except UpdateFinishedTrialError:
            say(f"evaluation {trial.number} is not counted: another process took this one for gone and does it again")
        except BaseException:
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
