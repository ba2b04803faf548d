"""What a report says, as `--json` prints it; the page shows nothing else."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A part of the report."""

    model_config = ConfigDict(extra="forbid")


class Score(Part):
    """One number about an artefact. value: a fraction for accuracies, else in the metric's unit. stderr: None where
    nobody knows it."""

    task: str
    metric: str
    value: float
    stderr: float | None = None
    questions: int | None = None
    higher_is_better: bool = True


class Artefact(Part):
    """A model, an adapter or a GGUF file of the run, or what was scored under its name.

    zeros: fraction of the linear layers' weights that are exactly 0. zeros_kept: of those that the mask prunes.
    bits_per_weight: on disk, of the linear layers, with scales. bytes: weight files; layer_bytes: of which the linear
    layers. seconds: to make it, as recorded."""

    name: str
    kind: str
    what: str = ""
    path: str | None = None
    scores: list[Score] = Field(default_factory=list)
    zeros: float | None = None
    zeros_kept: float | None = None
    bits_per_weight: float | None = None
    bytes: int | None = None
    layer_bytes: int | None = None
    seconds: float | None = None


class Training(Part):
    """A training run. held_out: [step, loss] of the held-out examples. draws: for each step, how many modules drew each
    of `rank_choices`."""

    name: str
    tuner: str
    losses: list[float]
    held_out: list[tuple[int, float]] = Field(default_factory=list)
    rank_choices: list[int] = Field(default_factory=list)
    draws: list[list[int]] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    seconds: float | None = None


class Trial(Part):
    number: int
    origin: str
    score: float
    stderr: float
    cost: float


class Search(Part):
    """A search. result: its search.json. trials: the finished ones. cost: what `Trial.cost` is. front: numbers."""

    name: str
    result: dict[str, Any]
    trials: list[Trial]
    cost: str
    front: list[int]


class Layers(Part):
    """The measured layers of a model. cells: [block, kind of layer, fraction of zeros]. codes: how many weights have
    each INT4 code; of these, how many are pruned. same: the artefacts whose zeros lie alike, left out for that."""

    name: str
    cells: list[tuple[int, str, float]]
    zeros: float
    weights: int
    pruned: float | None = None
    violations: int | None = None
    codes: list[int] = Field(default_factory=list)
    zero_code: int | None = None
    same: list[str] = Field(default_factory=list)


class Ranks(Part):
    """One configuration of ranks. cells: [block, kind of layer, rank]."""

    name: str
    cells: list[tuple[int, str, int]]


class StepRecord(Part):
    name: str
    seconds: float | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class Report(Part):
    """left_out: what lies in the folder and is not in the report → why."""

    path: str
    title: str
    summary: str = ""
    artefacts: list[Artefact] = Field(default_factory=list)
    trainings: list[Training] = Field(default_factory=list)
    searches: list[Search] = Field(default_factory=list)
    layers: list[Layers] = Field(default_factory=list)
    ranks: list[Ranks] = Field(default_factory=list)
    steps: list[StepRecord] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    command: str | None = None
    recipe: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
