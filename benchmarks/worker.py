"""A runtime in a process of its own, which answers each order, a line of JSON, with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Worker:
    """script: beside this file, with its arguments. settings: of its environment. began: what it said of its load."""

    def __init__(self, script: str, *arguments: object, settings: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **settings},
        )  # fmt: skip
        self.began = self._answer()

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code, command = self._process.wait(), " ".join(map(str, self._process.args))  # type: ignore[arg-type]
            raise SystemExit(f"{command} ended with code {code}: run it by hand to see why")
        return json.loads(line)
