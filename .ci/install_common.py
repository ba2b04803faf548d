"""What the scripts of the install share: the folder, the one-line error, locks."""

from __future__ import annotations

import fcntl
import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class InstallError(Exception):
    """One clear line for the user."""


def read_pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


def take_lock(path: Path, waiting: str) -> int:
    """Takes the lock file, after saying `waiting` where another process has it → its descriptor: closing it, or the end
    of this process, gives the lock back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(waiting)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor
