"""A search that is ready to run: what it chooses from, what it scores by, on which model and which questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sqft_plugins.search import cost as costs
from sqft_plugins.search.data import digest_of
from sqft_plugins.search.model import SearchedModel
from sqft_plugins.search.objective import Objective, Prepared
from sqft_plugins.search.paired import mean
from sqft_plugins.search.settings import SearchSettings
from sqft_plugins.search.space import Choice, Space

if TYPE_CHECKING:
    from optuna.study import Study

Costs = Mapping[str, costs.Cost]
"""Name → cost."""


@dataclass(frozen=True)
class Search:
    """parts: "search", "recheck" and "report" → their questions."""

    space: Space
    objective: Objective
    searched: SearchedModel
    parts: Mapping[str, Prepared]
    settings: SearchSettings

    def identity(self, task: str) -> dict[str, str]:
        """All that the scores of a study depend on. task: its name."""
        return {
            **self.searched.identity(),
            "set of questions": digest_of(self.parts["search"].items, {"task": task}),
            "objective": self.settings.objective,
            "cost": self.settings.against or "none",
            "share_rank": self.space.share_rank,
        }

    def costs(self, study: Study, adapter: Path) -> Costs:
        """Latencies are measured once a study, so that its trials can be compared."""
        shapes = costs.adapter_shapes(adapter)
        found: dict[str, Any] = {"parameters": costs.parameters(shapes)}
        if self.settings.against != "latency":
            return found

        table = study.user_attrs.get("latency")
        if table is None:
            asked = self.searched.dtype
            dtype = asked if isinstance(asked, torch.dtype) else torch.float32
            table = costs.measure_latency(shapes, self.space, dtype)
            study.set_user_attr("latency", table)
        return found | {"latency": costs.latency(shapes, table)}

    def evaluate(self, cost: Costs, ranks: dict[str, int]) -> dict[str, float]:
        """One trial: the score of module → rank on the search's questions, and its costs."""
        score = mean(self.searched.scores(ranks, self.objective, self.parts["search"]))
        prices = {name: price(ranks) for name, price in cost.items()}
        return {"score": score.value, "stderr": score.stderr, **prices}

    def fresh_scores(self, study: Study, part: str, choice: Choice) -> list[float]:
        """The score of each question of "recheck" or "report", from the study where it is known there."""
        prepared = self.parts[part]
        key = f"fresh:{digest_of(prepared.items, {'ranks': choice})}"  # a database takes 512 characters, not 200 ranks
        known: list[float] | None = study.user_attrs.get(key)
        if known is None:
            known = self.searched.scores(self.space.expand(choice), self.objective, prepared)
            study.set_user_attr(key, known)
        return known
