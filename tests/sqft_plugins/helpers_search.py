"""A search space whose best configuration is known, and a process that searches it.

`python helpers_search.py STUDY LOG EVALUATIONS SECONDS SEED [TOGETHER]` works on a study until its budget is spent;
each evaluation takes SECONDS and writes a line when it begins and one when it ends. It begins when TOGETHER processes
have opened the study, so that the budget is not spent before a slow one has started.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sqft_plugins.search.space import Choice, Space

IDENTITY = {"adapter": "a", "model": "m"}


def make_space(groups: int, choices: tuple[int, ...] = (8, 6, 4)) -> Space:
    return Space([f"model.layers.{i}.{name}" for i in range(groups) for name in ("q_proj", "up_proj")], choices)


def known_best(space: Space, seed: int) -> tuple[Choice, Callable[[Choice], float]]:
    """(the best configuration, a loss that is 0 there only): distances with weights, and neighbours that interact."""
    draw = random.Random(seed)
    best = tuple(draw.choice(space.ordered) for _ in space.groups)
    weights = [draw.uniform(0.5, 1.5) for _ in best]

    def loss(choice: Choice) -> float:
        off = [a - b for a, b in zip(choice, best, strict=True)]
        alone = sum(weight * abs(distance) for weight, distance in zip(weights, off, strict=True))
        return alone + 0.5 * sum(abs(a - b) for a, b in itertools.pairwise(off))

    return best, loss


def main(study: str, log: str, evaluations: int, seconds: float, seed: int, together: int = 1) -> None:
    from sqft_plugins.search.methods import HILL_CLIMBING
    from sqft_plugins.search.samplers import Unseen
    from sqft_plugins.search.study import Budget, open_study, run_trials

    space = make_space(5)
    _, loss = known_best(space, 0)
    opened = open_study(study, IDENTITY, ["minimize"], Unseen(HILL_CLIMBING.sampler(space, seed), space, seed))

    Path(f"{log}.{seed}").touch()
    while len(list(Path(log).parent.glob(f"{Path(log).name}.*"))) < together:
        time.sleep(0.02)

    def evaluate(ranks: dict[str, int]) -> dict[str, float]:
        choice = space.choice(ranks)
        for word in ("begins", "ends"):
            with open(log, "a") as file:
                file.write(f"{seed} {word} {choice}\n")
            time.sleep(seconds if word == "begins" else 0)
        return {"score": loss(choice)}

    run_trials(opened, space, evaluate, Budget(evaluations), starts={"heuristic": space.choice("heuristic")})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), *map(int, sys.argv[5:]))
