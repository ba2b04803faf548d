"""What is read of the JSON files of a run; fields that are not here are kept or passed over."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class HeldOut(BaseModel):
    step: int
    loss: float


class TrainingRecord(BaseModel):
    """training.json of an adapter folder."""

    model_config = ConfigDict(extra="allow")
    tuner: str = "adapter"
    losses: list[float]
    evaluations: list[HeldOut] = Field(default_factory=list)
    seconds: float | None = None
    adapter: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)


class Scored(BaseModel):
    score: float
    stderr: float
    questions: int


class Named(Scored):
    name: str


class Finalist(BaseModel):
    name: str
    search: dict[str, float] | None
    recheck: Scored
    parameters: float | None = None


class SearchSettings(BaseModel):
    objective: str
    method: str
    against: str | None = None


class SearchRecord(BaseModel):
    """search.json of a search folder."""

    task: str
    unit: str
    direction: str
    settings: SearchSettings
    space: dict[str, Any]
    evaluations: int
    finalists: list[Finalist]
    chosen: Named
    heuristic: Named
    difference: Scored
    verdict: str
    front: list[int]
    seconds: float | None = None


class StageInputs(BaseModel):
    """What a step was made of: options of a recipe's step, settings of a stage of the demo, and what must be equal for
    its result to be used again."""

    model_config = ConfigDict(extra="allow")
    name: Any = None
    version: Any = None
    after: list[str] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)


class Measured(BaseModel):
    zeros_kept: float | None = None
    bits_per_weight: float | None = None


class StageResult(BaseModel):
    model_config = ConfigDict(extra="allow")
    seconds: float | None = None
    measured: Measured = Measured()


class StageRecord(BaseModel):
    """stages/NAME.json of a run. key: what later steps name it by, in `after`."""

    key: str | None = None
    inputs: StageInputs = Field(default_factory=StageInputs)
    result: StageResult


class DemoStage(BaseModel):
    name: str
    accuracy: float
    accuracy_stderr: float
    perplexity: float
    zeros_kept: float | None = None
    bits_per_weight: float | None = None
    bytes: int | None = None
    seconds: float | None = None


class DemoRecord(BaseModel):
    """report.json of a demo."""

    task: str
    stages: list[DemoStage]
    settings: dict[str, Any] = Field(default_factory=dict)
