"""Finished stages are kept: a second run of `sqft demo` or `sqft run` reuses those whose inputs are unchanged."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqft_plugins._version import VERSION
from sqft_plugins.checkpoint.files import check_writable, held_alone
from sqft_plugins.errors import OutputExistsError
from sqft_plugins.progress import say

FOLDER = "stages"


class Stages:
    """The record of a run folder: `stages/NAME.json` holds the key of a finished stage's inputs and its result.

    what: the kind of folder, for messages. Nothing is written before the first stage is made. Raises OutputExistsError
    for a folder that is not empty and has no record, unless `overwrite`; SQFTError for one that cannot be made.
    """

    def __init__(self, out: Path, overwrite: bool = False, what: str = "demo"):
        self.out = out
        self.record = out / FOLDER
        self.reused: list[str] = []
        if out.exists() and not out.is_dir():
            raise OutputExistsError(f"--out {out} is a file: choose another path")
        if out.is_dir() and any(out.iterdir()) and not self.record.is_dir() and not overwrite:
            raise OutputExistsError(
                f"--out {out} exists and is no {what} folder: choose another path, or use --overwrite"
            )
        check_writable(self.record)
        self.keys: dict[str, str] = {}
        self._inputs: dict[str, dict[str, Any]] = {}

    def plan(
        self,
        name: str,
        *,
        after: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        output: str | None = None,
    ) -> dict[str, Any] | None:
        """Takes the stage up without making it → its result where there is one; arguments as of `run`."""
        inputs = {"name": name, "version": VERSION, "after": [self.keys[stage] for stage in after], **(settings or {})}
        text = json.dumps(inputs, sort_keys=True, default=str)
        self.keys[name] = hashlib.sha256(text.encode()).hexdigest()
        self._inputs[name] = inputs
        if output is not None and not (self.out / output).exists():
            return None
        try:
            done = json.loads((self.record / f"{name}.json").read_text())
            return done["result"] if done["key"] == self.keys[name] else None
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not whole: the stage is made again
            return None

    def run(
        self,
        name: str,
        make: Callable[[], Mapping[str, Any]],
        *,
        after: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        output: str | None = None,
        place: str = "",
    ) -> dict[str, Any]:
        """The result of `make`, or of an earlier run with the same settings after the same stages.

        output: the file or folder under the run folder that the stage writes; without it the stage is made again.
        place: such as "3/7 ", shown before its name.
        """
        known = self.plan(name, after=after, settings=settings, output=output)
        if known is not None:
            self.reused.append(name)
            if place:
                say(f"{place}{name}: done before")
            return known

        self.record.mkdir(parents=True, exist_ok=True)
        say(f"{place}{name}", "bold")
        file = self.record / f"{name}.json"
        file.unlink(missing_ok=True)  # a kill between the new output and its record must not leave the old record to it
        start = time.monotonic()
        result = dict(make())
        result.setdefault("seconds", time.monotonic() - start)

        partial = file.with_suffix(".partial")
        done = {"key": self.keys[name], "inputs": self._inputs[name], "result": result}
        partial.write_text(json.dumps(done, indent=2, default=str))
        partial.replace(file)
        return result

    def seconds(self, name: str) -> float:
        """Seconds that the stage took when it was made."""
        return float(json.loads((self.record / f"{name}.json").read_text())["result"]["seconds"])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the run folder. Raises SQFTError where another process does; a kill lets go."""
        self.record.mkdir(parents=True, exist_ok=True)
        with held_alone(self.record / ".lock", f"--out {self.out}", "worked on"):
            yield
