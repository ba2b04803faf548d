"""Who evaluates a configuration, when several processes work on one study.

A process asks the study for a trial and gets a number: the trial exists. It writes its proposal, the configuration,
into the trial. Then it reads all trials and decides: it takes the configuration, writing STARTED, or it gives way.

Two processes may propose the same configuration at the same moment. L is the trial with the lower number, H the one
with the higher. Each process writes its proposal before it reads, so at least one of the two sees the other:

1. H reads after L has proposed. H sees a lower number with its configuration and gives way. L, which may see H
   undecided until then, waits for that and takes the configuration.
2. H reads before L has proposed, and takes the configuration. L reads afterwards, sees that H has started, and gives
   way.
3. H reads before L has proposed, and L reads before H has written STARTED. L sees H undecided, waits, sees that H has
   started, and gives way.
4. As 1 or 3, but H dies while it is undecided. L waits PATIENCE seconds and takes the configuration.

A decision takes H a read and a write of the storage: milliseconds for a file, less than a second for a database far
away. After ten seconds H is most likely gone. If it was only that slow, a configuration is evaluated twice, which costs
time and changes no result.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Sequence

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sqft_plugins.progress import say
from sqft_plugins.search.samplers import ALIVE, choice_of
from sqft_plugins.search.space import Space

OWNER, STARTED = "owner", "started"
PATIENCE, PAUSE = 10.0, 0.02
"""Seconds that an undecided trial is waited for, and between two looks at it."""
DEAD_SECONDS = 900.0
"""A trial of another machine that is older than this, and than five of the longest finished ones, counts as dead."""
HOST = f"{socket.gethostname()}:{os.getpid()}"
_TOKEN = secrets.token_hex(4)  # a process number may come back, in a container it nearly always does


def claim(study: Study, trial: optuna.Trial, space: Space, limit: int | None, proposes: bool) -> bool:
    """Whether this process is to evaluate the configuration of `trial`, which has been proposed. See the module for the
    cases.

    limit: evaluations of the whole study, finished and running; a trial beyond them gives way.
    proposes: whether the method proposes configurations of its own. Where it does not, a trial that did not wait in the
        study gives way: another process has taken the last one that did.
    """
    trial.set_user_attr(OWNER, f"{HOST}:{_TOKEN}")
    mine = tuple(trial.params[group] for group in space.groups)
    deadline = time.monotonic() + PATIENCE

    while True:
        trials = study.get_trials(deepcopy=False)
        if not proposes and "fixed_params" not in trials[trial.number].system_attrs:
            return False
        if limit is not None and counted(trials).index(trial.number) >= limit:
            return False

        same = [t for t in trials if t.number != trial.number and t.state in ALIVE and choice_of(t, space) == mine]
        if any(other.number < trial.number for other in same):  # this is H of case 1
            return False
        if any(other.state == TrialState.COMPLETE or STARTED in other.user_attrs for other in same):  # L of 2 and 3
            return False

        undecided = any(other.state == TrialState.RUNNING for other in same)
        if not undecided or time.monotonic() > deadline:  # L of case 1, or of case 4
            trial.set_user_attr(STARTED, time.time())
            return True
        time.sleep(PAUSE)


def counted(trials: Sequence[FrozenTrial]) -> list[int]:
    """The numbers of the trials that count against the budget."""
    return sorted(t.number for t in trials if t.state in (TrialState.COMPLETE, TrialState.RUNNING))


def release_dead(study: Study, space: Space) -> int:
    """Marks the running trials of processes that are gone as failed, and lets their configurations wait for whoever
    comes next → how many."""
    trials = study.get_trials(deepcopy=False)
    longest = max((t.user_attrs.get("seconds", 0.0) for t in trials if t.state == TrialState.COMPLETE), default=0.0)
    gone = [t for t in trials if t.state == TrialState.RUNNING and _is_dead(t, max(DEAD_SECONDS, 5 * longest))]

    for trial in gone:
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        if choice_of(trial, space) is not None:
            named = {"origin": trial.user_attrs["origin"]} if "origin" in trial.user_attrs else {}
            study.enqueue_trial(dict(trial.params), user_attrs=named)

    if gone:
        say(f"evaluations of a process that is gone, done again: {len(gone)}")
    return len(gone)


def _is_dead(trial: FrozenTrial, seconds: float) -> bool:
    """Whether the trial's process is gone: known of a process of this machine, believed of another one's after
    `seconds`."""
    host, _, rest = str(trial.user_attrs.get(OWNER, "")).partition(":")
    pid, _, token = rest.partition(":")
    if host == socket.gethostname() and pid.isdigit():
        if int(pid) == os.getpid():
            return token != _TOKEN
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass

    begun = trial.user_attrs.get(STARTED)
    if begun is None:  # killed before it had begun; the two clocks are one machine's, or it counts as alive for longer
        assert trial.datetime_start is not None
        begun = trial.datetime_start.timestamp()
    return time.time() - begun > seconds
