"""The options of `sqft search`; impossible ones are errors before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sqft_plugins.settings import Offered, Settings, Written

if TYPE_CHECKING:
    from sqft_plugins.plugins.protocols import Task

EVALUATIONS = 60
"""The budget where neither evaluations nor minutes are given."""
FRESH = 256


class SearchInputs(Settings):
    """The questions of a search, where it begins, and where else its result goes."""

    data: Annotated[str | None, "file", Written(metavar="FILE")] = Field(
        default=None, description="JSONL of prompt and completion, not trained on."
    )
    task: Annotated[str | None, Offered("sqft_tasks")] = Field(
        default=None, description="A task in place of --data; `sqft plugins` lists them."
    )
    starts: Annotated[list[str], "file", Written("--start")] = Field(
        default_factory=list, description="A configuration to begin with. Repeatable."
    )
    save: Annotated[str | None, Written(metavar="NAME")] = Field(
        default=None, description="Also save the chosen ranks in ADAPTER as configurations/NAME.json."
    )

    def questions(self, argument: str) -> Task:
        """The task. argument: what the user wrote its name behind. Raises SQFTError."""
        from sqft_plugins.evaluate.tasks import JsonlTask
        from sqft_plugins.plugins import get_manager

        return JsonlTask(self.data) if self.data else get_manager().get("sqft_tasks", self.task or "", argument)


class SearchSettings(Settings):
    """A search."""

    method: Annotated[str, Offered("sqft_search_methods")] = Field(
        default="hill-climbing", description="hill-climbing, tpe, nsga2, fixed; plug-ins add more."
    )
    objective: Literal["nll", "accuracy"] = Field(
        default="nll",
        description="nll: negative log-likelihood of the gold answers, smooth and cheap. accuracy: greedy answers that "
        "are right.",
    )
    against: Literal["parameters", "latency"] | None = Field(
        default=None, description="Second objective: parameters, or latency (dense adapters only)."
    )
    evaluations: int | None = Field(
        default=None, ge=1, description="Budget of the whole study. Default: 60, without --minutes."
    )
    minutes: float | None = Field(
        default=None, gt=0, description="Budget of this call's search, without loading and re-check."
    )
    subset: int | None = Field(
        default=None, ge=1, description="Questions that the search sees. Default: 64, at most half."
    )
    fresh: int = Field(default=FRESH, ge=1, description="At most so many others for re-check and final score.")
    finalists: int = Field(default=3, ge=1, description="Re-checked beside the heuristic.")
    share_rank: Literal["layer", "module"] | None = Field(
        default=None, description="Which modules share a rank. Default: as the adapter was trained."
    )
    batch_size: int = Field(default=16, ge=1, description="Questions at a time.")
    dtype: Annotated[str, "dtype"] = Field(default="fast", description="fast (for here), auto (as stored), float32, …")
    accelerate: bool = Field(
        default=False, description="Run MODEL's INT4 layers packed, in less memory; for dense adapters."
    )
    seed: int = Field(default=0, description="Of everything that is drawn.")
