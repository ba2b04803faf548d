"""Reading what a run left: records of steps, trainings, searches and evaluations. A damaged file is an error that names
the file and the field; so is a value that no chart could show."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from sqft_plugins.errors import CheckpointError
from sqft_plugins.inspect.adapter import TRAINING
from sqft_plugins.report.data import Score, Search, StepRecord, Training, Trial
from sqft_plugins.report.find import SEARCH, STAGES, TRIALS, is_evaluation
from sqft_plugins.report.records import SearchRecord, StageRecord, TrainingRecord
from sqft_plugins.tune.record import read_record

T = TypeVar("T")
TOLD = ("base", "dtype", "tokens", "trained_parameters", "held_out", "kept_step")
"""Of training.json, beside its settings."""
NOT_LORAS = ("sparse", "share_rank", "quantization_aware", "grid", "rounding")
"""Settings of SQFT that a plain LoRA does not have."""
FRACTIONS = ("acc", "acc_norm", "exact_match", "last_number", "accuracy")
"""Metrics that are shown in per cent."""


def read_json(kind: type[T], file: Path) -> T:
    """What a JSON file holds, as that record. Raises CheckpointError, naming the field, for a file that is damaged."""
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        wrong = ".".join(map(str, first["loc"])) or "as a whole"
        raise CheckpointError(f"{file} is damaged or cut off: {wrong}: {first['msg']}") from error


# --- trainings ---


def read_training(folder: Path, name: str) -> Training | None:
    """The training of an adapter folder, None where it has no record."""
    file = folder / TRAINING
    if not file.is_file():
        return None

    record = read_json(TrainingRecord, file)
    drawn = [Counter(ranks.values()) for ranks, _ in read_record(folder)]
    choices = sorted({rank for counts in drawn for rank in counts}, reverse=True)
    more = record.model_extra or {}
    adapter = {key: value for key, value in record.adapter.items() if record.tuner != "lora" or key not in NOT_LORAS}
    settings = {**adapter, **record.training} | {key: more[key] for key in TOLD if more.get(key)}
    return Training(
        name=name,
        tuner=record.tuner,
        losses=record.losses,
        held_out=[(row.step, row.loss) for row in record.evaluations if math.isfinite(row.loss)],
        rank_choices=choices,
        draws=[[counts[rank] for rank in choices] for counts in drawn],
        settings={key: value for key, value in settings.items() if value is not None},
        seconds=record.seconds,
    )


# --- searches ---


def read_search(folder: Path, name: str) -> Search:
    """The search of a folder, with its finished trials."""
    file, table = folder / SEARCH, folder / TRIALS
    record = read_json(SearchRecord, file)
    cost = record.settings.against or "parameters"
    try:
        trials = list(_trials(table, cost)) if table.is_file() else []
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise CheckpointError(f"{table} is damaged ({type(error).__name__}: {error}): copy the folder again") from error
    return Search(name=name, result=read_json(dict[str, Any], file), trials=trials, cost=cost, front=record.front)


def _trials(table: Path, cost: str) -> Iterator[Trial]:
    with table.open(newline="") as handle:
        for row in csv.DictReader(handle):
            if row["state"] != "complete":
                continue
            score, stderr, price = (float(row[key] or "nan") for key in ("score", "stderr", cost))
            if all(map(math.isfinite, (score, stderr, price))):
                yield Trial(number=int(row["number"]), origin=row["origin"], score=score, stderr=stderr, cost=price)


# --- steps of a run ---


def read_steps(folder: Path) -> dict[str, StageRecord]:
    """Step → its record, in the order in which they follow each other."""
    files = sorted((folder / STAGES).glob("*.json"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    waiting = {file.stem: read_json(StageRecord, file) for file in files}

    # the first by time among those whose predecessors are done; in a circle, the first by time
    ordered: dict[str, StageRecord] = {}
    while waiting:
        known = {record.key for record in waiting.values()}
        free = [name for name, record in waiting.items() if known.isdisjoint(record.inputs.after)] or list(waiting)
        ordered[free[0]] = waiting.pop(free[0])
    return ordered


def step(name: str, record: StageRecord) -> StepRecord:
    """Its seconds and what it was asked for."""
    asked = {**(record.inputs.model_extra or {}), **record.inputs.options}
    settings = {key: value for key, value in asked.items() if not _is_digest(value) and value not in (None, [], {})}
    return StepRecord(name=name, seconds=record.result.seconds, settings=settings)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and all(c in "0123456789abcdef" for c in value)


# --- evaluations ---


def evaluations(value: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The evaluation reports within a value, however deep, each with the key that it lies under; `name` for the value
    itself."""
    if is_evaluation(value):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from evaluations(inner, str(key))


def scores(report: Mapping[str, Any]) -> list[Score]:
    """Every metric of an evaluation in lm-evaluation-harness' layout, except those that are not numbers."""
    found = []
    for task, row in report["results"].items():
        questions = _table(report, "n-samples", task).get("effective")
        better = _table(report, "higher_is_better", task)

        for key, value in row.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = row.get(f"{metric}_stderr,{kind}")
            found.append(
                Score(
                    task=task,
                    metric=metric,
                    value=value,
                    stderr=error if _is_number(error) else None,
                    questions=questions if isinstance(questions, int) else None,
                    higher_is_better=bool(better.get(metric, "perpl" not in metric)),
                )
            )
    return found


def _table(report: Mapping[str, Any], name: str, task: str) -> Mapping[str, Any]:
    """report[name][task] where both are tables, else an empty one."""
    tasks = report.get(name)
    found = tasks.get(task) if isinstance(tasks, dict) else None
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
