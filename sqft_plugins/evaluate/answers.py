"""What a model answered, remembered: a second evaluation of the same model asks it nothing.

One SQLite file for each identity of a model (see identity.py), in `~/.cache/sqft/eval` or where `SQFT_EVAL_CACHE` says.
A row is one answer, so a larger limit, another task over the same questions, or a run after a kill only asks for what
is new.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqft_plugins.errors import SQFTError
from sqft_plugins.variables import EVAL_CACHE


def cache_folder() -> Path:
    """Where the answers are kept."""
    if folder := os.environ.get(EVAL_CACHE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqft" / "eval"


class Answers:
    """The answers of one model. about: what decides them, from `identity`; kept in the file for people to read.

    Every method raises SQFTError where the file cannot be used: it is damaged, or the disk is full.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        self._about = json.dumps(about, sort_keys=True)
        self.file = folder / f"{hashlib.sha256(self._about.encode()).hexdigest()[:32]}.sqlite"
        self._db: sqlite3.Connection | None = None
        self.get("about")

    def get(self, *question: Any) -> Any:
        """The answer, or None."""
        row = self._run("SELECT value FROM answers WHERE key = ?", _key(question))
        return None if row is None else json.loads(row[0])

    def put(self, answer: Any, *question: Any) -> None:
        self._run("INSERT OR REPLACE INTO answers VALUES (?, ?)", _key(question), json.dumps(answer))

    def close(self) -> None:
        """Closes the file; it is opened again when it is needed."""
        if self._db is not None:
            self._db.close()
        self._db = None

    def _run(self, statement: str, *values: str) -> Any:
        try:
            if self._db is None:
                self._db = self._open()
            return self._db.execute(statement, values).fetchone()
        except (OSError, sqlite3.Error) as error:
            raise SQFTError(
                f"the cache {self.file} cannot be used ({error}): delete it, set {EVAL_CACHE}, or use --no-cache"
            ) from error

    def _open(self) -> sqlite3.Connection:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        opened = sqlite3.connect(self.file, timeout=60, isolation_level=None)
        opened.execute("PRAGMA synchronous=OFF")  # a power cut may lose answers, nothing else
        opened.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT)")
        opened.execute("INSERT OR IGNORE INTO answers VALUES ('about', ?)", (self._about,))
        return opened


def _key(question: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()
