"""Searching a space whose best configuration is known: every method, one study of several processes, a killed one."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from helpers_search import IDENTITY, known_best, make_space
from optuna.trial import TrialState

from sqft_plugins.errors import CheckpointError, MismatchError, SQFTError
from sqft_plugins.search.finals import pareto_front
from sqft_plugins.search.methods import FIXED, HILL_CLIMBING, NSGA2, TPE
from sqft_plugins.search.samplers import Unseen, choice_of
from sqft_plugins.search.study import Budget, finished, open_study, run_trials

pytestmark = pytest.mark.once  # all lanes have the same optuna
HELPER = Path(__file__).parents[1] / "helpers_search.py"


def search(method, space, loss, budget, objectives=1, seed=0, target=None):
    """Runs a search → (its study, why it ended)."""
    sampler = Unseen(method.sampler(space, seed), space, seed)
    directions = ["minimize"] * objectives
    study = (
        open_study(target, IDENTITY, directions, sampler)
        if target
        else optuna.create_study(directions=directions, sampler=sampler)
    )

    def evaluate(ranks):
        score, price = loss(space.choice(ranks)), float(sum(ranks.values()))
        return {"score": score, "parameters": price}

    starts = {name: space.choice(name) for name in method.starts if name in ("heuristic", "max", "min")}
    against = "parameters" if objectives == 2 else None
    return study, run_trials(study, space, evaluate, budget, starts=starts, against=against, proposes=method.proposes)


# --- finding ---


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("method", "groups", "objectives"),
    [(HILL_CLIMBING, 5, 1), (TPE, 5, 1), (NSGA2, 5, 1), (NSGA2, 6, 2)],
    ids=["hill-climbing", "tpe", "nsga2", "nsga2-against-parameters"],
)
def test_the_best_configuration_is_found_with_a_third_of_all_evaluations(method, groups, objectives, seed) -> None:
    space = make_space(groups)
    best, loss = known_best(space, seed)
    everything = list(itertools.product(space.ordered, repeat=groups))
    assert min(everything, key=loss) == best
    study, _ = search(method, space, loss, Budget(len(everything) // 3), objectives, seed)
    found = [choice_of(trial, space) for trial in finished(study)]
    assert len(found) == len(set(found)) == len(everything) // 3
    assert best in found


@pytest.mark.parametrize("method", [HILL_CLIMBING, TPE, NSGA2], ids=lambda method: method.name)
def test_a_search_without_end_evaluates_everything_once(method) -> None:
    space = make_space(3)
    study, why = search(method, space, known_best(space, 1)[1], Budget(evaluations=1000))
    assert sorted(choice_of(trial, space) for trial in finished(study)) == sorted(
        itertools.product(space.ordered, repeat=3)
    )
    assert why == "all 27 configurations are evaluated"


def test_hill_climbing_begins_at_the_heuristic_and_goes_from_the_best_to_its_neighbours() -> None:
    space = make_space(5)
    _, loss = known_best(space, 2)
    study, _ = search(HILL_CLIMBING, space, loss, Budget(12))
    path = [choice_of(trial, space) for trial in finished(study)]
    assert path[0] == space.choice("heuristic") == (6, 6, 6, 6, 6)
    for place in range(1, len(path)):
        best = min(path[:place], key=loss)
        assert path[place] in set(space.neighbours(best)) or set(space.neighbours(best)) <= set(path[:place])


def test_the_fixed_choices_are_evaluated_and_no_more() -> None:
    space = make_space(4)
    study, why = search(FIXED, space, known_best(space, 0)[1], Budget())
    assert [trial.user_attrs["origin"] for trial in finished(study)] == ["heuristic", "max", "min"]
    assert why == "all starting configurations are evaluated"


def test_the_front_is_what_nobody_beats() -> None:
    space = make_space(4)
    study, _ = search(NSGA2, space, known_best(space, 3)[1], Budget(40), objectives=2)
    trials = finished(study)
    front = pareto_front(trials, "minimize", "parameters")
    naive = set()
    for one in trials:
        beaten = any(
            other.values[0] <= one.values[0] and other.values[1] <= one.values[1] and other.values != one.values
            for other in trials
        )
        naive |= set() if beaten else {tuple(one.values)}
    assert {tuple(trial.values) for trial in front} == naive
    costs = [trial.user_attrs["parameters"] for trial in front]
    assert costs == sorted(costs)


# --- budgets, stops, several processes ---


def test_a_budget_in_minutes_ends_the_search() -> None:
    space = make_space(6)
    _, loss = known_best(space, 0)
    start = time.monotonic()
    _, why = search(HILL_CLIMBING, space, lambda choice: time.sleep(0.05) or loss(choice), Budget(minutes=0.01))
    assert why == "0.01 minutes are over"
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("name", ["study.journal", "study.db"])
def test_a_search_goes_on_where_it_was(tmp_path, name) -> None:
    space = make_space(4)
    _, loss = known_best(space, 0)
    seen = []

    def counted(choice):
        seen.append(choice)
        return loss(choice)

    search(HILL_CLIMBING, space, counted, Budget(5), target=tmp_path / name)
    study, _ = search(HILL_CLIMBING, space, counted, Budget(9), target=tmp_path / name)
    assert len(seen) == len(set(seen)) == len(finished(study)) == 9
    search(HILL_CLIMBING, space, lambda choice: pytest.fail("evaluated again"), Budget(9), target=tmp_path / name)


def test_an_evaluation_that_fails_is_free_to_be_done_again(tmp_path) -> None:
    space = make_space(4)

    def broken(choice):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(HILL_CLIMBING, space, broken, Budget(5), target=tmp_path / "s.journal")
    study, _ = search(HILL_CLIMBING, space, known_best(space, 0)[1], Budget(5), target=tmp_path / "s.journal")
    assert choice_of(finished(study)[0], space) == space.choice("heuristic")
    assert len(finished(study)) == 5


def start_process(target, log, evaluations, seconds, seed, together=1):
    command = [sys.executable, HELPER, *map(str, (target, log, evaluations, seconds, seed, together))]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)


def lines(log: Path, word: str, seed: str = "") -> list[str]:
    rows = [line.split(" ", 2) for line in log.read_text().splitlines()] if log.is_file() else []
    return [choice for who, what, choice in rows if what == word and seed in ("", who)]


def test_a_killed_process_loses_only_what_it_was_at(tmp_path) -> None:
    target, log = tmp_path / "s.journal", tmp_path / "log"
    first = start_process(target, log, 20, 0.2, 1)
    deadline = time.monotonic() + 300
    while len(lines(log, "begins")) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    begun, ended = lines(log, "begins"), lines(log, "ends")
    assert 5 <= len(ended) < 20
    second = start_process(target, log, 20, 0.0, 2)
    _, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    done = lines(log, "ends")
    # a trial that had ended, but was not yet in the study when the process died, is done again: at most that one
    assert len(set(done)) == 20
    assert len(done) <= 21
    for choice in set(begun) - set(ended):
        assert choice in lines(log, "begins", seed="2")
    space = make_space(5)
    study = optuna.load_study(study_name="sqft-search", storage=open_study_storage(target))
    assert len({choice_of(trial, space) for trial in finished(study)}) == len(finished(study)) == 20
    assert not [trial for trial in study.trials if trial.state == TrialState.RUNNING]


def open_study_storage(target: Path):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(target)))


@pytest.mark.parametrize("name", ["study.journal", "study.db"])
def test_two_processes_share_one_study(tmp_path, name) -> None:
    target, log = tmp_path / name, tmp_path / "log"
    processes = [start_process(target, log, 24, 0.3, seed, together=2) for seed in (1, 2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    begun = lines(log, "begins")
    assert sorted(begun) == sorted(set(begun))  # nothing twice, not even at the same moment
    assert len(begun) == len(lines(log, "ends")) == 24  # the budget is that of both together
    space = make_space(5)
    study = open_study(target, IDENTITY, ["minimize"], None)
    assert len({choice_of(trial, space) for trial in finished(study)}) == 24
    owners = {trial.user_attrs["owner"] for trial in finished(study)}
    assert len(owners) == 2


def test_a_waiting_trial_of_a_database_is_taken_once(tmp_path, monkeypatch) -> None:
    """The second process comes between the first one's look at the trial's state and its change of it."""
    from optuna.storages import RDBStorage

    first, second = (open_study(tmp_path / "s.db", IDENTITY, ["minimize"], None) for _ in range(2))
    first.enqueue_trial({})
    taken = []
    other = threading.Thread(target=lambda: taken.append(second.ask().number))
    check = RDBStorage.check_trial_is_updatable

    def late(storage, *about):
        monkeypatch.undo()
        other.start()
        other.join(timeout=1)
        return check(storage, *about)

    monkeypatch.setattr(RDBStorage, "check_trial_is_updatable", late)
    taken.append(first.ask().number)
    other.join()
    assert sorted(taken) == [0, 1]


def test_an_evaluation_that_another_process_gave_up_ends_no_search(tmp_path) -> None:
    """One of a large model may take longer than another machine waits."""
    space = make_space(4)
    _, loss = known_best(space, 0)
    seen = []

    def slow(choice):
        seen.append(choice)
        if len(seen) == 2:
            other = open_study(tmp_path / "s.journal", IDENTITY, ["minimize"], None)
            running = next(trial for trial in other.get_trials() if trial.state == TrialState.RUNNING)
            other.tell(running.number, state=TrialState.FAIL)
            other.enqueue_trial(running.params)
        return loss(choice)

    study, why = search(HILL_CLIMBING, space, slow, Budget(4), target=tmp_path / "s.journal")
    assert why == "4 evaluations are done"
    assert seen[1] == seen[2]  # its configuration was done again
    assert len(finished(study)) == 4


def test_fixed_choices_that_another_process_took_are_not_replaced(monkeypatch) -> None:
    space, ask = make_space(4), optuna.study.Study.ask

    def late(study, given):
        monkeypatch.undo()
        while any(trial.state == TrialState.WAITING for trial in study.get_trials()):
            study.tell(ask(study, given), 1.0)
        return ask(study, given)

    monkeypatch.setattr(optuna.study.Study, "ask", late)
    _, why = search(FIXED, space, lambda choice: pytest.fail("evaluated one more"), Budget())
    assert why == "all starting configurations are evaluated"


# --- what does not belong together ---


def test_a_process_that_begins_at_the_same_moment_is_no_other_program(tmp_path, monkeypatch) -> None:
    read = optuna.study.Study.user_attrs.fget

    def late(study):
        found = read(study)
        if not found:  # the other one writes just now
            study.set_user_attr("sqft", IDENTITY)
            study.enqueue_trial({})
        return found

    monkeypatch.setattr(optuna.study.Study, "user_attrs", property(late))
    assert open_study(tmp_path / "s.journal", IDENTITY, ["minimize"], None).trials


def test_a_study_of_another_adapter_is_refused(tmp_path) -> None:
    open_study(tmp_path / "s.journal", IDENTITY, ["minimize"], None)
    with pytest.raises(MismatchError, match="was made with another adapter: choose another file or #NAME"):
        open_study(tmp_path / "s.journal", {**IDENTITY, "adapter": "b"}, ["minimize"], None)
    with pytest.raises(MismatchError, match="another adapter and another model"):
        open_study(tmp_path / "s.journal", {"adapter": "b", "model": "n"}, ["minimize"], None)
    with pytest.raises(SQFTError, match=r"optimizes \['minimize'\], this search \['minimize', 'minimize'\]"):
        open_study(tmp_path / "s.journal", IDENTITY, ["minimize", "minimize"], None)
    other = open_study(f"{tmp_path / 's.journal'}#other", {**IDENTITY, "adapter": "b"}, ["minimize"], None)
    assert not other.trials


@pytest.mark.parametrize("name", ["s.journal", "s.db"])
def test_a_file_that_is_no_study_is_refused(tmp_path, name) -> None:
    (tmp_path / name).write_text("this is a letter to my aunt\n" * 50)
    with pytest.raises(CheckpointError, match=r"--study .* cannot be opened"):
        open_study(tmp_path / name, IDENTITY, ["minimize"], None)
    with pytest.raises(SQFTError, match="is a folder, a file goes there"):
        open_study(tmp_path, IDENTITY, ["minimize"], None)
    with pytest.raises(SQFTError, match=r"--study /proc/s\.db cannot be written: /proc is not a writable folder"):
        open_study("/proc/s.db", IDENTITY, ["minimize"], None)


def test_trials_of_another_program_are_refused(tmp_path) -> None:
    storage = f"sqlite:///{tmp_path / 's.db'}"
    study = optuna.create_study(storage=storage, study_name="sqft-search")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(SQFTError, match="holds trials of another program"):
        open_study(tmp_path / "s.db", IDENTITY, ["minimize"], None)
