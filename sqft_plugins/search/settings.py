"""The settings of a search; impossible ones are errors before anything is loaded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sqft_plugins.search.data import FRESH
from sqft_plugins.tune.settings import Settings

EVALUATIONS = 60
"""The budget where neither evaluations nor minutes are given."""


class SearchSettings(Settings):
    """A search.

    method: `sqft_search_methods`. objective: "nll" of the gold answers or "accuracy" of greedy ones. against: the
    second objective, None for the score alone. evaluations: of the whole study; minutes: of this call's search, without
    loading and re-check. subset, fresh: see `sqft_plugins.search.data.split_items`. finalists: re-checked beside the
    heuristic. share_rank: as the adapter was trained, where None. dtype: "fast", "auto" or a torch name. accelerate:
    the INT4 layers of the base run from their packed form (dense adapters).
    """

    method: str = "hill-climbing"
    objective: Literal["nll", "accuracy"] = "nll"
    against: Literal["parameters", "latency"] | None = None
    evaluations: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    subset: int | None = Field(None, ge=1)
    fresh: int = Field(FRESH, ge=1)
    finalists: int = Field(3, ge=1)
    share_rank: Literal["layer", "module"] | None = None
    batch_size: int = Field(16, ge=1)
    dtype: str = "fast"
    accelerate: bool = False
    seed: int = 0
