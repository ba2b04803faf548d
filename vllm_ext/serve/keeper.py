"""Ends a server whose `sqft serve` was killed: `python -m vllm_ext.serve.keeper SESSION FOLDER...`.

A process that is killed (SIGKILL, out of memory) can hand nothing on, and vLLM's engine outlives its API server. So a
second, small process holds the other end of a pipe: when that closes, it kills the server's session and removes the
folders.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

TRACKER = b"multiprocessing.resource_tracker"
TRACKER_SECONDS = 2.0
"""What Python's resource tracker gets to remove the shared memory of the processes that were killed."""


def end_session(leader: int) -> None:
    """Kills every process of the session that `leader` began; resource trackers last, when they have cleared up."""
    deadline = time.monotonic() + TRACKER_SECONDS
    while time.monotonic() < deadline:
        members = _members(leader)
        if not members:
            break
        _kill(pid for pid, command in members.items() if TRACKER not in command)
        time.sleep(0.05)
    _kill(_members(leader))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)  # where there is no /proc


def _members(leader: int) -> dict[int, bytes]:
    """{process: its command line} of those of a session that still run. Empty where there is no /proc."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes()
    return found


def _kill(processes: Iterable[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def main(leader: int, folders: list[str]) -> None:
    """Waits until stdin is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # for `sqft serve`, which ends us when the server has ended
    sys.stdin.buffer.read()
    end_session(leader)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
