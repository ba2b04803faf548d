"""A server process: started, waited for, handed signals, ended with all it started."""

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
from sqft_plugins.progress import PLAIN_SECONDS, say
from vllm_ext.serve.keeper import end_session

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 10.0
"""Seconds that a server gets to end after a signal, before its processes are killed; vLLM's --shutdown-timeout, by
which running requests are finished first, comes on top."""
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
def handling(handlers: Mapping[int, Callable[[int, Any], object]]) -> Iterator[None]:
    """While it is entered, signals to this process go to these handlers."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Ending:
    """How a server ends: by the signals that this process gets, by `now`, and within `patience` seconds.

    The first signal is handed on and starts the clock; when that has run down, or at a second signal, the server and
    all it started are killed. vLLM alone ignores a signal while it loads and waits for requests that do not end.
    """

    def __init__(self, patience: float):
        self.patience = patience
        self.signal: int | None = None
        """The first that came."""
        self.killed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While it is entered, signals of this process are the server's."""
        with handling(dict.fromkeys(FORWARDED, self._got) | {signal.SIGALRM: lambda *_: self._kill()}):
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def of(self, process: subprocess.Popen[bytes]) -> None:
        """The server, as soon as there is one: a signal that came before is handed on now."""
        self._process = process
        if self.signal is not None:
            self._hand_on(self.signal)

    def now(self) -> None:
        """Ends what runs; afterwards nothing of it does. The second time nothing happens: the number of the process may
        be another's by then."""
        if self._process is None or self._over:
            return
        _send(self._process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self.patience)
        end_session(self._process.pid)  # engine processes that outlived the API server, too
        self._process.wait()
        self._over = True

    def _got(self, number: int, _: Any) -> None:
        if self.signal is not None:
            self._kill()
            return
        self.signal = number
        if self._process is not None:
            self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        assert self._process is not None
        _send(self._process, number)
        signal.setitimer(signal.ITIMER_REAL, self.patience)

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self.killed = True
            end_session(self._process.pid)


@contextmanager
def started(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: IO[str] | int,
    ending: Ending | None = None,
    folders: Sequence[str] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """The running server, in a session of its own; at the end it and whatever it started are gone.

    log: where its output goes. ending: how it ends. folders: what goes with it, also where this process is killed.
    While it runs, signals of this process are handed on: in a session of its own the server does not get the
    terminal's Ctrl-C a second time.
    """
    ending = ending or Ending(PATIENCE)
    with ending.listening(), contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            list(command), env={**os.environ, **environment}, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        stack.callback(ending.now)
        ending.of(process)

        # until the server has ended, keeper.py watches this process
        keeper = subprocess.Popen(
            [sys.executable, "-m", "vllm_ext.serve.keeper", str(process.pid), *folders], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        stack.enter_context(keeper)
        stack.callback(keeper.kill)
        stack.callback(ending.now)
        yield process


def wait_healthy(process: subprocess.Popen[bytes], url: str, timeout: float, log: str | None = None) -> bool:
    """Asks `url`/health until it answers → True; False where the process ended first. Says every 15 seconds that the
    server is not ready; its own log, where that is on stderr (None), says more. Raises SQFTError after `timeout` s."""
    start = said = time.monotonic()
    while process.poll() is None:
        with contextlib.suppress(*NO_ANSWER), _get(f"{url}/health", timeout=5):
            return True
        now = time.monotonic()
        waited = now - start
        if waited > timeout:
            raise SQFTError(
                f"the server is not healthy after {timeout:.0f} s: see its log, or wait longer by --timeout"
            )
        if now - said >= PLAIN_SECONDS:
            said = now
            say(f"waiting for the server: {waited:.0f} s (35 s are usual){f', log in {log}' if log else ''}")
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


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        process.send_signal(number)


def _end_with_parent() -> None:
    """Runs in the child: where `sqft serve` itself is killed, the API server ends at once, even without a keeper."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
