"""Checkpoints of a training run, in a hidden folder beside its output, and going on from the last one.

Trainer's checkpoint has the adapter, the optimizer, the schedule, the random states and the losses. This adds the
record of the drawn ranks, the best adapter, and `sqft.json`: what the run is, written last, so that a checkpoint
without it was not finished.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sqft_plugins.checkpoint.files import held_alone, make_folder
from sqft_plugins.checkpoint.leftovers import CHECKPOINTS, LOCK, discard, work_folder
from sqft_plugins.errors import MismatchError
from sqft_plugins.progress import say
from sqft_plugins.tune.evaluation import Best
from sqft_plugins.tune.record import HISTORY

MARK = "sqft.json"
BEST = "sqft_best.safetensors"


def checkpoint_folder(out: str | Path) -> Path:
    """`.NAME.checkpoints` beside the output NAME."""
    return work_folder(Path(out).resolve(), CHECKPOINTS)


@contextmanager
def alone(out: str | Path) -> Iterator[None]:
    """Holds the output, for one run at a time. Raises SQFTError where another process writes it. Without a checkpoint,
    no folder is left behind."""
    folder = checkpoint_folder(out)
    make_folder(folder, out, "--out")
    with held_alone(folder / LOCK, f"--out {out}", "written"):
        try:
            yield
        finally:
            if all(path.name == LOCK for path in folder.glob("*")):
                discard(folder, Path(out).resolve())


def last_checkpoint(folder: Path, run: Mapping[str, Any], anew: bool = False) -> Path | None:
    """The newest finished checkpoint, None without one. A checkpoint of another run raises MismatchError, naming the
    setting; with `anew`, all checkpoints are removed instead."""
    finished = [path.parent for path in folder.glob(f"checkpoint-*/{MARK}")]
    if not finished:
        return None

    last = max(finished, key=step_of)
    found, wanted = _flat(_mark(last)["run"]), _flat(json.loads(json.dumps(run)))
    for name in sorted({*found, *wanted}):
        if found.get(name) == wanted.get(name):
            continue
        other = f"{folder} holds step {step_of(last)} of another run ({_difference(name, found, wanted)})"
        if not anew:
            raise MismatchError(f"{other}: give the same to go on with it, or remove that folder to begin anew")
        say(f"{other}: starting anew")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return None
    return last


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class Checkpoints(TrainerCallback):
    """Completes Trainer's checkpoints.

    folder: where they are.
    scratch: where RankRecorder writes.
    run: what must be equal in a run that goes on from a checkpoint.
    best: the best adapter so far, None where the last one is kept.

    resumed_from: the step that the run goes on from, None for a run that began anew.
    """

    def __init__(self, folder: Path, scratch: Path, run: Mapping[str, Any], best: Best | None):
        self.folder, self.scratch, self.run, self.best = folder, scratch, run, best
        self.begun, self.before = time.monotonic(), 0.0
        self.resumed_from: int | None = None

    @property
    def seconds(self) -> float:
        """Of the whole run, with the part before the checkpoint it went on from."""
        return self.before + time.monotonic() - self.begun

    def restore(self, checkpoint: Path) -> None:
        """Takes up what Trainer does not know of."""
        mark = _mark(checkpoint)
        self.before, self.resumed_from = mark["seconds"], step_of(checkpoint)
        if (checkpoint / HISTORY).is_file():
            shutil.copyfile(checkpoint / HISTORY, self.scratch / HISTORY)
        if self.best is not None and mark["best"] is not None:
            self.best.step, self.best.loss = mark["best"]
            self.best.tensors = load_file(checkpoint / BEST)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return

        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        best = None
        if (self.scratch / HISTORY).is_file():
            shutil.copyfile(self.scratch / HISTORY, checkpoint / HISTORY)
        if self.best is not None and self.best.step is not None:
            best = [self.best.step, self.best.loss]
            save_file(self.best.tensors, checkpoint / BEST)

        mark = {"run": self.run, "seconds": self.seconds, "best": best}
        (checkpoint / f"{MARK}.partial").write_text(json.dumps(mark))
        (checkpoint / f"{MARK}.partial").rename(checkpoint / MARK)


def _mark(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / MARK).read_text())


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """One level: of a mapping within, each value by its own name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _difference(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    there, here = found.get(name), wanted.get(name)
    if isinstance(there, str) and len(there) == 64:  # a SHA-256 says nothing to a reader
        return f"other {name}"
    return f"{name}={there}, here {here}"
