"""Finished stages are kept: a second run reuses those whose inputs are unchanged."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqft_plugins._version import VERSION
from sqft_plugins.errors import OutputExistsError
from sqft_plugins.progress import say

FOLDER = "stages"


class Stages:
    """The record of a demo folder: `stages/NAME.json` holds the key of a finished stage's inputs and its result.

    Raises OutputExistsError for a folder that is not empty and not a demo's, unless `overwrite`.
    """

    def __init__(self, out: Path, overwrite: bool = False):
        self.out = out
        self.record = out / FOLDER
        self.reused: list[str] = []
        if out.exists() and not out.is_dir():
            raise OutputExistsError(f"--out {out} is a file: choose another path")
        if out.is_dir() and any(out.iterdir()) and not self.record.is_dir() and not overwrite:
            raise OutputExistsError(
                f"--out {out} exists and is no demo folder: choose another path, or use --overwrite"
            )
        self.record.mkdir(parents=True, exist_ok=True)
        self.keys: dict[str, str] = {}

    def run(
        self,
        name: str,
        make: Callable[[], Mapping[str, Any]],
        *,
        after: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        output: str | None = None,
    ) -> dict[str, Any]:
        """The result of `make`, or of an earlier run with the same settings after the same stages.

        output: the file or folder under the demo folder that the stage writes; without it the stage is made again.
        """
        inputs = {"name": name, "version": VERSION, "after": [self.keys[stage] for stage in after], **(settings or {})}
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
        self.keys[name] = key
        file = self.record / f"{name}.json"
        if file.is_file() and (output is None or (self.out / output).exists()):
            done = json.loads(file.read_text())
            if done["key"] == key:
                self.reused.append(name)
                return done["result"]
        say(f"[bold]{name}[/bold]")
        start = time.monotonic()
        result = dict(make())
        result.setdefault("seconds", time.monotonic() - start)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"key": key, "inputs": inputs, "result": result}, indent=2, default=str))
        partial.replace(file)
        return result

    def seconds(self, name: str) -> float:
        """Seconds that the stage took when it was made."""
        return float(json.loads((self.record / f"{name}.json").read_text())["result"]["seconds"])
