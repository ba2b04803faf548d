"""A server process: started, waited for, told of signals, ended with all it started."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from sqft_plugins.errors import SQFTError

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 15.0
"""Seconds that a server gets to end after a signal, before its processes are killed."""
NO_ANSWER = (OSError, http.client.HTTPException)
"""What a request raises where nobody answers, or not in HTTP; urllib's own errors are OSErrors."""


def check_port(host: str, port: int) -> None:
    """Raises SQFTError where the address is not to be had. Asked beforehand: vLLM finds out after half a minute, and
    what listens there meanwhile would answer in its place."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM: one that was just let go is free
            probe.bind((host, port))
    except OSError as error:
        raise SQFTError(
            f"nothing can listen at --host {host} --port {port} ({error.strerror}): end what does, or choose another"
        ) from error


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
        with contextlib.suppress(*NO_ANSWER), _get(f"{url}/health", timeout=5):
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
    """The names that the server's /v1/models lists. key: of vLLM's --api-key. Raises one of NO_ANSWER."""
    with _get(f"{url}/v1/models", 60, {"Authorization": f"Bearer {key}"} if key else {}) as answer:
        models: dict[str, Any] = json.load(answer)
    return [model["id"] for model in models["data"]]


def _get(url: str, timeout: float, headers: Mapping[str, str] | None = None) -> Any:
    """The answer, whatever certificate the server shows: it is our own child. Never through a proxy (`http_proxy`)."""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=ssl._create_unverified_context()))
    request = urllib.request.Request(url, headers=dict(headers or {}))
    return urllib.request.build_opener(*handlers).open(request, timeout=timeout)


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
