"""Configurations out of the training's own record: the ranks drawn most often, and those with the lowest loss."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean, median

from sqft_plugins.errors import MismatchError
from sqft_plugins.search.space import Choice, Space
from sqft_plugins.tune.record import HISTORY, read_record

WINDOW = 10
"""Steps before and after one whose median loss its own is compared with: the loss falls while ranks are drawn."""


class History:
    """steps: (the rank of each group, the loss of the batch), oldest first."""

    def __init__(self, steps: list[tuple[Choice, float]]):
        self.steps = steps

    def most_frequent(self, space: Space) -> Choice:
        """For each group the rank drawn most often; of several, the largest. A whole configuration is hardly ever drawn
        twice."""
        counts = [Counter(choice[index] for choice, _ in self.steps) for index in range(len(space.groups))]
        return tuple(max(space.ordered, key=lambda rank, c=count: (c[rank], rank)) for count in counts)  # type: ignore[misc]

    def lowest_loss(self, space: Space) -> Choice:
        """For each group the rank whose steps had the lowest mean loss above the trend (the median of the 10 steps
        before and after). A rank never drawn is not chosen; of equal ones, the smaller is."""
        above = self.above_trend()
        result = []
        for index in range(len(space.groups)):
            losses: dict[int, list[float]] = {}
            for (choice, _), loss in zip(self.steps, above, strict=True):
                losses.setdefault(choice[index], []).append(loss)
            result.append(min(sorted(losses), key=lambda rank, found=losses: fmean(found[rank])))  # type: ignore[misc]
        return tuple(result)

    def above_trend(self) -> list[float]:
        """Each step's loss minus the median of its neighbourhood."""
        losses = [loss for _, loss in self.steps]
        return [loss - median(losses[max(0, place - WINDOW) : place + WINDOW + 1]) for place, loss in enumerate(losses)]


def read_history(adapter: Path, space: Space) -> History | None:
    """The record that `sqft train` left in an adapter folder, None without a record, or where its ranks differ within a
    group of `space`. Raises CheckpointError as `read_record` does, MismatchError for the record of another adapter."""
    choices = []
    for ranks, loss in read_record(adapter):
        if set(ranks) != set(space.modules) or not set(ranks.values()) <= set(space.ordered):
            raise MismatchError(
                f"{adapter / HISTORY} belongs to another adapter: copy the adapter again, or remove the file"
            )

        # ranks of modules → ranks of groups
        values = [{ranks[module] for module in members} for members in space.members.values()]
        if any(len(found) > 1 for found in values):
            return None
        choices.append((tuple(found.pop() for found in values), loss))
    return History(choices) if choices else None
