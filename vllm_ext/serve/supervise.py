"""A server process: started, waited for, told of signals, ended with all it started."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from sqft_plugins.errors import SQFTError

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 15.0
"""Seconds that a server gets to end after a signal, before its processes are killed."""


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str], log: IO[str] | int) -> Iterator[subprocess.Popen]:
    """The running server, in a session of its own; at the end it and whatever it started are gone.

    log: where its output goes. While it runs, SIGINT, SIGTERM and SIGHUP of this process are handed on once: in a
    session of its own the server does not get the terminal's Ctrl-C a second time.
    """
    process = subprocess.Popen(
        list(command), env={**os.environ, **environment}, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        start_new_session=True, preexec_fn=_end_with_parent,
    )  # fmt: skip
    before = {number: signal.signal(number, lambda got, _: _send(process, got)) for number in FORWARDED}
    try:
        yield process
    finally:
        _send(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        _kill_group(process)  # engine processes that outlived the API server, too
        process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_healthy(process: subprocess.Popen, url: str, tell: Callable[[float], None], timeout: float) -> bool:
    """Asks `url`/health until it answers → True; False where the process ended first.

    tell: called about once a second with the seconds since the start. Raises SQFTError after `timeout` seconds.
    """
    start = time.monotonic()
    while process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), _get(f"{url}/health", timeout=5):
            return True
        waited = time.monotonic() - start
        if waited > timeout:
            raise SQFTError(
                f"the server is not healthy after {timeout:.0f} s: see its log, or wait longer by --timeout"
            )
        tell(waited)
        time.sleep(1)
    return False


def served_names(url: str, key: str | None = None) -> list[str]:
    """The names that the server's /v1/models lists. key: of vLLM's --api-key."""
    with _get(f"{url}/v1/models", 60, {"Authorization": f"Bearer {key}"} if key else {}) as answer:
        models: dict[str, Any] = json.load(answer)
    return [model["id"] for model in models["data"]]


def _get(url: str, timeout: float, headers: Mapping[str, str] | None = None) -> Any:
    """The answer, whatever certificate the server shows: it is our own child."""
    request = urllib.request.Request(url, headers=dict(headers or {}))
    context = ssl._create_unverified_context() if url.startswith("https:") else None
    return urllib.request.urlopen(request, timeout=timeout, context=context)


def _send(process: subprocess.Popen, number: int) -> None:
    if process.poll() is None:
        process.send_signal(number)


def _kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _end_with_parent() -> None:
    """Runs in the child: where `sqft serve` itself is killed, the server shall not stay behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
