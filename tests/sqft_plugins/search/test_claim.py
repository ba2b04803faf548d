"""Two processes that propose one configuration: the cases of `sqft_plugins.search.claim`, one test each.

L is the trial with the lower number, H the one with the higher.
"""

from __future__ import annotations

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from sqft_plugins.search import claim as claiming
from sqft_plugins.search.claim import STARTED, claim
from sqft_plugins.search.samplers import distributions
from sqft_plugins.search.space import Space

SPACE = Space(["model.layers.0.q_proj"], (8, 4))
(GROUP,) = SPACE.groups


class Same(BaseSampler):
    """Proposes 8, always."""

    def infer_relative_search_space(self, study, trial):
        return distributions(SPACE)

    def sample_relative(self, study, trial, search_space):
        return {GROUP: 8}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return 8


@pytest.fixture
def study():
    return optuna.create_study(sampler=Same())


def exists(study):
    """A trial that has a number and has proposed nothing yet."""
    return study.ask()


def propose(trial) -> None:
    assert trial.suggest_categorical(GROUP, SPACE.ordered) == 8


def asked(study):
    """A trial that has proposed."""
    trial = exists(study)
    propose(trial)
    return trial


def takes(study, trial, limit=None, proposes=True) -> bool:
    return claim(study, trial, SPACE, limit, proposes)


def starts(trial) -> None:
    trial.set_user_attr(STARTED, 0.0)


@pytest.fixture
def meanwhile(monkeypatch):
    """`meanwhile(f)`: `f` happens while a trial waits; waiting takes no time. → how often it waited."""

    def set_up(happens=lambda: None) -> list:
        clock, waited = [0.0], []

        def sleep(seconds):
            clock[0] += seconds
            waited.append(seconds)
            happens()

        monkeypatch.setattr(claiming.time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(claiming.time, "sleep", sleep)
        return waited

    return set_up


def test_case_1_h_sees_the_lower_number_and_gives_way(study) -> None:
    low, high = asked(study), asked(study)
    assert not takes(study, high)
    study.tell(high, state=TrialState.FAIL)
    assert takes(study, low)


def test_case_1_l_waits_for_the_undecided_h_to_give_way(study, meanwhile) -> None:
    low, high = asked(study), asked(study)
    waited = meanwhile(lambda: study.tell(high, state=TrialState.FAIL))
    assert takes(study, low)
    assert len(waited) == 1


def test_case_2_h_has_started_before_l_proposes_and_l_gives_way(study) -> None:
    low, high = exists(study), asked(study)
    assert takes(study, high)
    propose(low)
    assert not takes(study, low)


def test_case_2_h_has_finished_before_l_proposes_and_l_gives_way(study) -> None:
    low, high = exists(study), asked(study)
    study.tell(high, 1.0)
    propose(low)
    assert not takes(study, low)


def test_case_3_l_sees_h_undecided_and_gives_way_once_it_has_started(study, meanwhile) -> None:
    low, high = asked(study), asked(study)
    waited = meanwhile(lambda: starts(high))
    assert not takes(study, low)
    assert len(waited) == 1


def test_case_4_h_dies_undecided_and_l_takes_it_after_ten_seconds(study, meanwhile) -> None:
    low, _ = asked(study), asked(study)
    waited = meanwhile()
    assert takes(study, low)
    assert sum(waited) == pytest.approx(10, abs=0.1)


def test_a_trial_beyond_the_budget_gives_way(study) -> None:
    first, second = exists(study), asked(study)
    assert not takes(study, second, limit=1)
    study.tell(first, state=TrialState.FAIL)
    assert takes(study, second, limit=1)


def test_a_method_that_proposes_nothing_takes_only_what_waited(study) -> None:
    assert not takes(study, asked(study), proposes=False)
    study.enqueue_trial({GROUP: 4})
    waited = study.ask(distributions(SPACE))
    assert takes(study, waited, proposes=False)
