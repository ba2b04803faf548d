"""Reading what a run left: records of steps, trainings, searches and evaluations. A damaged file is an error that names
it; a value that no chart could show is one, too."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sqft_plugins.errors import CheckpointError
from sqft_plugins.inspect.adapter import TRAINING
from sqft_plugins.report.data import Score, Search, StepRecord, Training, Trial
from sqft_plugins.report.find import SEARCH, STAGES, TRIALS, is_evaluation
from sqft_plugins.tune.record import HISTORY

Model = TypeVar("Model", bound=BaseModel)
TOLD = ("base", "dtype", "tokens", "trained_parameters", "held_out", "kept_step")
"""Of training.json, beside its settings."""
NOT_LORAS = ("sparse", "share_rank", "quantization_aware", "grid")
"""Settings of SQFT that a plain LoRA does not have."""
FRACTIONS = ("acc", "acc_norm", "exact_match", "last_number", "accuracy")
"""Metrics that are shown in per cent."""


class TrainingRecord(BaseModel):
    """What is read of training.json."""

    model_config = ConfigDict(extra="allow")
    tuner: str = "adapter"
    losses: list[float]
    evaluations: list[HeldOut] = Field(default_factory=list)
    seconds: float | None = None
    adapter: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)


class HeldOut(BaseModel):
    step: int
    loss: float


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


class Settings(BaseModel):
    objective: str
    method: str
    against: str | None = None


class SearchRecord(BaseModel):
    """What is read of search.json; the rest is kept as it is."""

    task: str
    unit: str
    direction: str
    settings: Settings
    space: dict[str, Any]
    evaluations: int
    finalists: list[Finalist]
    chosen: Named
    heuristic: Named
    difference: Scored
    verdict: str
    front: list[int]
    seconds: float | None = None


def read_json(file: Path) -> Any:
    """Raises CheckpointError."""
    try:
        return json.loads(file.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON file ({error}): it is damaged or cut off") from error


def checked(kind: type[Model], value: Any, file: Path) -> Model:
    """The value as that record. Raises CheckpointError, naming the field."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise CheckpointError(f"{file}: {where}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def read_training(folder: Path, name: str) -> Training | None:
    """The training of an adapter folder, None where it has no record."""
    file = folder / TRAINING
    if not file.is_file():
        return None
    record = checked(TrainingRecord, read_json(file), file)
    choices, draws = read_draws(folder)
    more = record.model_extra or {}
    adapter = {key: value for key, value in record.adapter.items() if record.tuner != "lora" or key not in NOT_LORAS}
    settings = {**adapter, **record.training}
    settings |= {key: more[key] for key in TOLD if more.get(key)}
    return Training(
        name=name,
        tuner=record.tuner,
        losses=record.losses,
        held_out=[(row.step, row.loss) for row in record.evaluations if math.isfinite(row.loss)],
        rank_choices=choices,
        draws=draws,
        settings={key: value for key, value in settings.items() if value is not None},
        seconds=record.seconds,
    )


def read_draws(folder: Path) -> tuple[list[int], list[list[int]]]:
    """(ranks that were drawn, how many modules drew each of them, step by step), empty without a record."""
    file = folder / HISTORY
    if not file.is_file():
        return [], []
    try:
        rows = [json.loads(line)["ranks"] for line in file.read_text().splitlines()[1:]]
        steps = [Counter(map(int, ranks)) for ranks in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): copy the adapter again, or remove the file") from error
    choices = sorted({rank for step in steps for rank in step}, reverse=True)
    return choices, [[step[rank] for rank in choices] for step in steps]


def read_search(folder: Path, name: str) -> Search:
    file = folder / SEARCH
    result = read_json(file)
    record = checked(SearchRecord, result, file)
    cost = record.settings.against or "parameters"
    trials = []
    table = folder / TRIALS
    if table.is_file():
        try:
            with table.open(newline="") as handle:
                rows = [row for row in csv.DictReader(handle) if row["state"] == "complete"]
            for row in rows:
                numbers = [float(row[key] or "nan") for key in ("score", "stderr", cost)]
                if all(map(math.isfinite, numbers)):
                    score, stderr, price = numbers
                    origin = row["origin"]
                    trials.append(
                        Trial(number=int(row["number"]), origin=origin, score=score, stderr=stderr, cost=price)
                    )
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            raise CheckpointError(
                f"{table} is damaged ({type(error).__name__}: {error}): copy the folder again"
            ) from error
    return Search(name=name, result=result, trials=trials, cost=cost, front=record.front)


def read_steps(folder: Path) -> dict[str, dict[str, Any]]:
    """Step → its record (key, inputs, result), in the order in which they follow each other."""
    files = sorted((folder / STAGES).glob("*.json"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    waiting = {}
    for file in files:
        record = read_json(file)
        if not isinstance(record, dict) or not isinstance(record.get("result"), dict):
            raise CheckpointError(f"{file} is no record of a step: it has no result")
        waiting[file.stem] = {"inputs": {}, **record}
    ordered: dict[str, dict[str, Any]] = {}
    while waiting:
        known = {record.get("key") for record in waiting.values()}
        free = [name for name, record in waiting.items() if not known & set(_after(record))] or list(waiting)
        ordered[free[0]] = waiting.pop(free[0])
    return ordered


def _after(record: Mapping[str, Any]) -> list[str]:
    inputs = record["inputs"]
    found = inputs.get("after") if isinstance(inputs, dict) else None
    return [key for key in found if isinstance(key, str)] if isinstance(found, list) else []


def step(name: str, record: Mapping[str, Any]) -> StepRecord:
    """Its seconds and what it was asked for."""
    seconds = record["result"].get("seconds")
    inputs = record["inputs"] if isinstance(record["inputs"], dict) else {}
    plain = {key: value for key, value in inputs.items() if key not in ("name", "version", "after", "options")}
    if isinstance(inputs.get("options"), dict):  # a recipe's
        plain |= inputs["options"]
    settings = {key: value for key, value in plain.items() if not _is_digest(value) and value not in (None, [], {})}
    return StepRecord(name=name, seconds=seconds if isinstance(seconds, int | float) else None, settings=settings)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and all(c in "0123456789abcdef" for c in value)


def evaluations(value: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The evaluation reports within a value, as deep as they lie, each under the key that it lies under; `name` where
    there is none."""
    if is_evaluation(value):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from evaluations(inner, str(key))


def scores(report: Mapping[str, Any]) -> list[Score]:
    """Every metric of an evaluation in lm-evaluation-harness' layout, but those that are no numbers."""
    found = []
    counts, better = report.get("n-samples") or {}, report.get("higher_is_better") or {}
    for task, row in report["results"].items():
        for key, value in row.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = row.get(f"{metric}_stderr,{kind}")
            asked = counts.get(task) if isinstance(counts, dict) else None
            asked = asked if isinstance(asked, dict) else {}
            higher = better.get(task) if isinstance(better, dict) else None
            found.append(
                Score(
                    task=task,
                    metric=metric,
                    value=value,
                    stderr=error if _is_number(error) else None,
                    questions=asked.get("effective") if isinstance(asked.get("effective"), int) else None,
                    higher_is_better=bool(
                        (higher if isinstance(higher, dict) else {}).get(metric, "perpl" not in metric)
                    ),
                )
            )
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
