"""What a report says, as `--json` prints it; the page shows nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Score:
    """One number about an artefact.

    value: a fraction for accuracies, else in the metric's unit.
    stderr: None where it is not known.
    """

    task: str
    metric: str
    value: float
    stderr: float | None = None
    questions: int | None = None
    higher_is_better: bool = True


@dataclass
class Artefact:
    """A model, an adapter or a GGUF file of the run, or what was scored under its name.

    kind: "model", "GGUF", "adapter" or "evaluation" (a score whose model is not in the folder).
    what: the same in words, such as the steps that made it.
    zeros: fraction of the linear layers' weights that are exactly 0.
    zeros_kept: fraction of the pruned weights that are exactly 0.
    bits_per_weight: on disk, of the linear layers, with scales.
    bytes: of the weight files; layer_bytes: of the linear layers in them.
    seconds: to make it, as recorded.
    """

    name: str
    kind: str
    what: str = ""
    path: str | None = None
    scores: list[Score] = field(default_factory=list)
    zeros: float | None = None
    zeros_kept: float | None = None
    bits_per_weight: float | None = None
    bytes: int | None = None
    layer_bytes: int | None = None
    seconds: float | None = None


@dataclass
class Training:
    """A training run.

    held_out: (step, loss) of the held-out examples.
    draws: for each step, how many modules drew each of `rank_choices`.
    """

    name: str
    tuner: str
    losses: list[float]
    held_out: list[tuple[int, float]] = field(default_factory=list)
    rank_choices: list[int] = field(default_factory=list)
    draws: list[list[int]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None


@dataclass
class Trial:
    """A finished trial of a search. cost: in the unit of `Search.cost`."""

    number: int
    origin: str
    score: float
    stderr: float
    cost: float


@dataclass
class Search:
    """A search.

    result: its search.json.
    trials: the finished ones.
    cost: what `Trial.cost` is, "parameters" or "latency".
    front: the numbers of the trials that no other one beats in score and cost.
    """

    name: str
    result: dict[str, Any]
    trials: list[Trial]
    cost: str
    front: list[int]


@dataclass
class Layers:
    """The measured layers of a model.

    cells: (block, kind of layer, fraction of zeros).
    pruned: the fraction of weights that the mask prunes; violations: of these weights, how many are not zero.
    codes: how many weights have each INT4 code; zero_code: the code of an exact zero, if all layers share one.
    same: the artefacts whose zeros lie alike; their own `cells` are empty.
    """

    name: str
    cells: list[tuple[int, str, float]]
    zeros: float
    weights: int
    pruned: float | None = None
    violations: int | None = None
    codes: list[int] = field(default_factory=list)
    zero_code: int | None = None
    same: list[str] = field(default_factory=list)


@dataclass
class Ranks:
    """One configuration of ranks. cells: (block, kind of layer, rank)."""

    name: str
    cells: list[tuple[int, str, int]]


@dataclass
class StepRecord:
    """A step of a recipe or a stage of the demo. settings: what it was asked for."""

    name: str
    seconds: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """left_out: what lies in the folder and is not in the report → why. environment: of the machine that made the
    page, for a run does not record its own."""

    path: str
    title: str
    summary: str = ""
    artefacts: list[Artefact] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    layers: list[Layers] = field(default_factory=list)
    ranks: list[Ranks] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    command: str | None = None
    recipe: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: a number that is not finite is null, for JSON has none."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=lambda name: None)
        return found
