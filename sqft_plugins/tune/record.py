"""The record of a training run's draws: which ranks each step had, and its loss. `sqft search` and `sqft report` read
it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sqft_plugins.errors import CheckpointError

HISTORY = "sqft_rank_history.jsonl"
"""In the adapter folder. The first line is {"version": 1, "modules": [module name, …]}, every other one a step:
{"step": 1, "loss": 2.31, "ranks": [rank of each module, in that order]}."""
VERSION = 1


def read_record(adapter: Path) -> list[tuple[dict[str, int], float]]:
    """(module → rank, loss of the batch) of each step that was recorded in an adapter folder, oldest first; [] without
    a record. Raises CheckpointError for a record that is damaged, or of a version that this release does not read."""
    file = adapter / HISTORY
    if not file.is_file():
        return []
    try:
        head, *rows = [json.loads(line) for line in file.read_text().splitlines()]
        version, modules = head["version"], head["modules"]
        steps = [(dict(zip(modules, map(int, row["ranks"]), strict=True)), float(row["loss"])) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): copy the adapter again, or remove the file") from error
    if version != VERSION:
        raise CheckpointError(f"{file} has version {version}, this release reads {VERSION}: upgrade sqft-plugins")
    return steps


class RankRecorder(TrainerCallback):
    """Writes one line a step into `folder`; none for a tuner that draws no ranks, and none where a step accumulates
    several draws, since its loss is then that of no single configuration. Data-parallel processes share their draws."""

    def __init__(self, tuner: Any, model: nn.Module, folder: Path):
        self.file = folder / HISTORY
        self.drawn: Callable[[nn.Module], Mapping[str, int]] = getattr(tuner, "drawn_ranks", lambda model: {})
        self.model = model
        self.ranks: dict[str, int] = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.ranks = dict(self.drawn(self.model))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = (kwargs.get("logs") or {}).get("loss")
        single = args.gradient_accumulation_steps == 1 and args.logging_steps == 1
        if loss is None or not self.ranks or not single or not state.is_world_process_zero:
            return
        with self.file.open("a") as file:
            if file.tell() == 0:
                file.write(json.dumps({"version": VERSION, "modules": list(self.ranks)}) + "\n")
            row = {"step": state.global_step, "loss": float(loss), "ranks": list(self.ranks.values())}
            file.write(json.dumps(row) + "\n")
