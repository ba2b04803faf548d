"""What the scripts of the install share: places, the one-line error, locks, pip's command line."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PIP_LOG = VENV / "install.log"
CONSTRAINTS = ROOT / "constraints.txt"


class InstallError(Exception):
    """One clear line for the user."""


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


def pip(*arguments: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", *arguments]


def pip_install(*arguments: str, constraints: Path = CONSTRAINTS) -> list[str]:
    # --no-compile: of 11,000 files that pip would compile, a program imports a part, and Python compiles it then.
    return pip("install", "--progress-bar=off", "--no-compile", "-c", str(constraints), *arguments)
