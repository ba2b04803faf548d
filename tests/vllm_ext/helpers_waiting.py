"""Waiting for something that another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def comes_true(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it is true within that time."""
    end = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return true


def goes(path: Path) -> bool:
    """Whether a file or folder is removed soon."""
    return comes_true(lambda: not path.exists())


def is_gone(pid: int) -> bool:
    """Whether a process ends soon; one that nobody has waited for has ended, too."""

    def ended() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    return comes_true(ended)
