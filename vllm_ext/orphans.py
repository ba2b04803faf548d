"""Ends vLLM's engine when the process that started it is gone: vLLM 0.32 notices this in its workers only, so the
engine of a killed API server keeps its memory for ever. `sqft serve` has a keeper as well, which is quicker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

NAMES = ("EngineCore", "ApiServer", "VllmWorker")
"""How the names of vLLM's own processes begin. Others may have reasons to outlive their parent."""


def end_with_parent() -> bool:
    """In a process of vLLM's that another one started: it is killed when that one ends. Returns whether this is one."""
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith(NAMES):
        return False

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="sqft-parent", daemon=True).start()
    return True
