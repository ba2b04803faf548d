"""What a search reports, as `search.json` and `sqft search --json` have it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqft_plugins.search.paired import Direction


@dataclass(frozen=True)
class Conclusion:
    """finalists: name, search (score and stderr, None where the search has not seen it), costs, recheck.
    chosen: the same of the configuration that won, with its score on the report's questions, and its ranks.
    heuristic: the same of the heuristic.
    difference: chosen - heuristic on the report's questions, paired.
    verdict: what that means, in words.
    front: numbers of the trials that no other beats in both score and cost.
    """

    finalists: list[dict[str, Any]]
    chosen: dict[str, Any]
    heuristic: dict[str, Any]
    difference: dict[str, Any]
    verdict: str
    front: list[int]


@dataclass
class SearchReport:
    """study: where the trials are.
    settings: as asked, with the share_rank and the dtype that were used.
    space: groups, rank_choices and size (how many configurations there are).
    evaluations: of the whole study; evaluations_of_this_call: of this process.
    ended: why the search ended.
    out, conclusion: None for a process that only evaluates.
    """

    model: str
    adapter: str
    task: str
    study: str
    settings: dict[str, Any]
    unit: str
    direction: Direction
    space: dict[str, Any]
    evaluations: int
    evaluations_of_this_call: int
    ended: str
    out: str | None = None
    conclusion: Conclusion | None = None

    def as_dict(self, seconds: float) -> dict[str, Any]:
        """One level; seconds: of the whole call."""
        found = asdict(self)
        conclusion = found.pop("conclusion") or {}
        if self.out is None:
            del found["out"]
        return {**found, **conclusion, "seconds": seconds}
