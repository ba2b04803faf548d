"""Optuna samplers of ours: hill climbing, and a sampler that never proposes what was proposed before.

They keep no state of their own: whatever they need is in the study, so that several processes can share one and a
killed search goes on where it was.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sqft_plugins.search.space import Choice, Space

ALIVE = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
TRIES = 8
"""Proposals of a sampler that were there before, after which its last one is mutated instead."""


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Group → its ranks, as Optuna's parameters."""
    return {group: CategoricalDistribution(space.ordered) for group in space.groups}


def choice_of(trial: FrozenTrial, space: Space) -> Choice | None:
    """The configuration of a trial, also of a trial that only waits; None before it has proposed."""
    params = trial.system_attrs.get("fixed_params") or trial.params
    return tuple(params[group] for group in space.groups) if len(params) == len(space.groups) else None


def taken(trials: Iterable[FrozenTrial], space: Space) -> set[Choice]:
    """The configurations that were evaluated, are being evaluated or wait for it."""
    found = {choice_of(trial, space) for trial in trials if trial.state in ALIVE}
    return {choice for choice in found if choice is not None}


class _Whole(BaseSampler):
    """A sampler that proposes all groups at once."""

    def __init__(self, space: Space, seed: int):
        self.space, self.generator, self.all = space, random.Random(seed), distributions(space)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.all

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return dict(zip(self.space.groups, self.propose(study, trial), strict=True))

    @abstractmethod
    def propose(self, study: Study, trial: FrozenTrial) -> Choice:
        """A rank for each group of the space."""

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.generator.choice(self.space.ordered)


class HillClimber(_Whole):
    """Proposes an unseen neighbour of the best configuration so far; once all of its neighbours are known, of the next
    best. So the climb is a first-improvement one, and does not end at a local optimum while there is a budget."""

    def propose(self, study: Study, trial: FrozenTrial) -> Choice:
        trials = study.get_trials(deepcopy=False)
        seen = taken(trials, self.space)
        downhill = study.direction == StudyDirection.MINIMIZE
        done = [t for t in trials if t.state == TrialState.COMPLETE and choice_of(t, self.space) is not None]
        for best in sorted(done, key=lambda t: t.values[0] if downhill else -t.values[0]):
            choice = choice_of(best, self.space)
            assert choice is not None
            near = [other for other in self.space.neighbours(choice) if other not in seen]
            if near:
                return self.generator.choice(near)
        start = self.space.choice("heuristic")  # nothing is finished yet: around what the other processes work on
        return unseen(self.space, lambda: start, seen, self.generator)


class Unseen(_Whole):
    """`inner`, asked again while it proposes what the study has already."""

    def __init__(self, inner: BaseSampler, space: Space, seed: int):
        super().__init__(space, seed)
        self.inner = inner

    def propose(self, study: Study, trial: FrozenTrial) -> Choice:
        def ask() -> Choice:
            known = self.inner.infer_relative_search_space(study, trial)
            found = self.inner.sample_relative(study, trial, known)
            for name in self.space.groups:
                if name not in found:
                    found[name] = self.inner.sample_independent(study, trial, name, self.all[name])
            return tuple(found[name] for name in self.space.groups)

        return unseen(self.space, ask, taken(study.get_trials(deepcopy=False), self.space), self.generator)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()


def unseen(space: Space, ask: Callable[[], Choice], seen: Collection[Choice], generator: random.Random) -> Choice:
    """The first proposal that is not in `seen`; after `TRIES`, the last one with a random group changed, with up to two
    where that was often in vain, and so on. Where all were seen (another process took the last), any."""
    choice = ask()
    for _ in range(TRIES - 1):
        if choice not in seen:
            return choice
        choice = ask()
    tries = 0
    proposal = choice
    while proposal in seen and len(seen) < space.size:
        tries += 1
        most = min(len(choice), 1 + tries // (4 * len(choice)))
        proposal = space.mutate(choice, generator.randint(1, most), generator)
    return proposal
