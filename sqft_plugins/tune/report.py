"""What a training run reports, as `training.json` and `sqft train --json` have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainReport:
    """out: the adapter folder; base: the model folder; tuner: the adapter type.
    adapter, training: the settings, `training` with the steps that the epochs come to.
    dtype, dtype_reason: of the base, and why.
    processes: that shared each batch.
    examples, held_out: that were learned, and not; dropped: that were too long.
    tokens: of all rows, in training order.
    seconds: of the whole run, with the part before a stop.
    resumed_from_step: None for a run that began anew.
    kept_step: the step whose adapter was written.
    losses: of each step; evaluations: step, loss, and loss_at_max_rank where the adapter is elastic.
    coverage: what part of the model's weights are adapted (`Coverage.as_dict`).
    """

    out: str
    base: str
    tuner: str
    adapter: dict[str, Any]
    training: dict[str, Any]
    dtype: str
    processes: int
    dtype_reason: str
    base_is_int4: bool
    trained_parameters: int
    examples: int
    dropped: int
    held_out: int
    tokens: int
    seconds: float
    resumed_from_step: int | None
    kept_step: int
    losses: list[float]
    evaluations: list[dict[str, Any]]
    coverage: dict[str, Any] | None = None
