"""The options of `sqft search`; impossible ones are errors before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from sqft_plugins.configurations import check_configuration_name, read_configuration
from sqft_plugins.errors import within
from sqft_plugins.settings import Offered, Settings, option

if TYPE_CHECKING:
    from sqft_plugins.plugins.protocols import Task

EVALUATIONS = 60
"""The budget where neither evaluations nor minutes are given."""
FRESH = 256


class SearchInputs(Settings):
    """The questions of a search, where it begins, and where else its result goes."""

    data: str | None = option(None, "JSONL of prompt and completion, not trained on.", "file", metavar="FILE")
    task: str | None = option(None, "A task in place of --data; `sqft plugins` lists them.", Offered("sqft_tasks"))
    starts: list[str] = option(list, "A configuration to begin with. Repeatable.", "file", name="--start")
    save: str | None = option(
        None, "Also save the chosen ranks in ADAPTER as configurations/NAME.json.", metavar="NAME"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.save is not None:
            check_configuration_name(self.save)
        return self

    def check_starts(self, argument: str) -> None:
        """Raises SQFTError for a file that holds no configuration. argument: what the user wrote it behind."""
        for file in self.starts:
            with within(f"{argument} {file}"):
                read_configuration(file)

    def questions(self, argument: str) -> Task:
        """The task. argument: what the user wrote its name behind. Raises SQFTError."""
        from sqft_plugins.evaluate.tasks import JsonlTask
        from sqft_plugins.plugins import get_manager

        return JsonlTask(self.data) if self.data else get_manager().get("sqft_tasks", self.task or "", argument)


class SearchSettings(Settings):
    """A search."""

    method: str = option(
        "hill-climbing", "hill-climbing, tpe, nsga2, fixed; plug-ins add more.", Offered("sqft_search_methods")
    )
    objective: Literal["nll", "accuracy"] = option(
        "nll",
        "nll: negative log-likelihood of the gold answers, smooth and cheap. accuracy: greedy answers that are right.",
    )
    against: Literal["parameters", "latency"] | None = option(
        None, "Second objective: parameters, or latency (dense adapters only)."
    )
    evaluations: int | None = option(None, "Budget of the whole study. Default: 60, without --minutes.", ge=1)
    minutes: float | None = option(None, "Budget of this call's search, without loading and re-check.", gt=0)
    subset: int | None = option(None, "Questions that the search sees. Default: 64, at most half.", ge=1)
    fresh: int = option(FRESH, "At most so many others for re-check and final score.", ge=1)
    finalists: int = option(3, "Re-checked beside the heuristic.", ge=1)
    share_rank: Literal["layer", "module"] | None = option(
        None, "Which modules share a rank. Default: as the adapter was trained."
    )
    batch_size: int = option(16, "Questions at a time.", ge=1)
    dtype: str = option("fast", "fast (for here), auto (as stored), float32, …", "dtype")
    accelerate: bool = option(False, "Run MODEL's INT4 layers packed, in less memory; for dense adapters.")
    seed: int = option(0, "Of everything that is drawn.")
