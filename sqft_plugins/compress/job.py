"""A long compression that survives being killed: what is finished stays, and the same command goes on from there.

Beside the output `OUT` lies a hidden folder `.OUT.sqft-job` with the model folder as far as it is written, the
calibration states before the next block, and what was asked. It goes when the output is there, when something else is
asked for, and after an error in the input.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sqft_plugins._version import VERSION
from sqft_plugins.checkpoint.files import (
    check_output_folder,
    empty_folder,
    held_alone,
    make_folder,
    replace_folder,
    translate_full_disk,
)
from sqft_plugins.checkpoint.leftovers import DONE, JOB, LOCK, discard, work_folder
from sqft_plugins.errors import DiskFullError, SQFTError
from sqft_plugins.identity import identity_of_code
from sqft_plugins.progress import say

REQUEST, PROGRESS = "request.json", "progress.json"


class Job:
    """folder: the model folder that is being written. done: blocks that are finished. rows: their layers' reports.
    notes: anything JSON that the next blocks need. states: the calibration states before block `done`. further: what
    else block `done - 1` has returned, a tuple for each state, or nothing."""

    def __init__(self, path: Path):
        self.path = path
        self.folder = path / "model"
        self.done = 0
        self.rows: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        self.states: list[Tensor] | None = None
        self.further: list[tuple[Any, ...]] = []
        self.resumed = False

    def save(self, states: Sequence[Tensor] | None, further: Sequence[tuple[Any, ...]] = ()) -> None:
        """One more block is finished; `states` are the inputs of the next, `further` what else it has returned."""
        self.done += 1
        if states is not None:
            save_file({str(i): state.contiguous() for i, state in enumerate(states)}, self._states_file(self.done))
        if further:
            torch.save(list(further), self._further_file(self.done))
        progress = {"done": self.done, "rows": self.rows, "notes": self.notes, "calibrated": states is not None}
        _write(self.path / PROGRESS, json.dumps(progress))  # from here on the block counts as done
        self._states_file(self.done - 1).unlink(missing_ok=True)
        self._further_file(self.done - 1).unlink(missing_ok=True)

    def load(self) -> None:
        """Takes up what an earlier run has saved, if it has."""
        file = self.path / PROGRESS
        if not file.is_file():
            return
        progress = json.loads(file.read_text())
        self.done, self.rows, self.notes = progress["done"], progress["rows"], progress["notes"]
        if progress["calibrated"]:
            stored = load_file(self._states_file(self.done))
            self.states = [stored[str(index)] for index in range(len(stored))]
        if self._further_file(self.done).is_file():
            self.further = torch.load(self._further_file(self.done), weights_only=True)
        self.resumed = True

    def _further_file(self, block: int) -> Path:
        return self.path / f"further-{block}.pt"

    def _states_file(self, block: int) -> Path:
        return self.path / f"states-{block}.safetensors"


@contextmanager
def open_job(out: str | Path, request: Mapping[str, Any], overwrite: bool, argument: str = "--out") -> Iterator[Job]:
    """Yields the job that writes `out`; on success its folder becomes `out`.

    request: everything that the result depends on, as JSON; where it differs from that of a job left behind, the job
    starts anew. After Ctrl-C, a kill or a full disk the finished blocks stay; after a mistake in the input
    (SQFTError) nothing does. Raises SQFTError where another process is at it.
    """
    shown, path = out, check_output_folder(out, overwrite, argument).resolve()
    work = work_folder(path, JOB)
    make_folder(work, shown, argument)
    program = {"version": VERSION, "code": identity_of_code(), "torch": torch.__version__}
    asked = json.dumps({**program, **request})

    with held_alone(work / LOCK, f"{argument} {shown}", "written"):
        left_behind = work / REQUEST
        job = Job(work)
        if left_behind.is_file() and left_behind.read_text() != asked:
            say(f"{work} is of another command or another model: starting anew")
            left_behind.unlink()

        try:
            if not left_behind.is_file() or not job.folder.is_dir():  # without either, what is there is a remainder
                empty_folder(work)
                job.folder.mkdir()
                _write(left_behind, asked)

            job.load()
            with translate_full_disk(path, argument, f"{job.done} finished blocks stay, run the same command to go on"):
                yield job
                (work / DONE).touch()
                replace_folder(job.folder, path)
        except DiskFullError:
            raise
        except SQFTError:
            discard(work, path)
            raise

        discard(work, path)


def _write(file: Path, text: str) -> None:
    beside = file.with_name(f"{file.name}.new")
    beside.write_text(text)
    os.replace(beside, file)
