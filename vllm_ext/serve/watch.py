"""Watching a running server: `python -m vllm_ext.serve.watch JSON`, what `sqft serve` becomes once it knows what to
start. 25 MiB, where a process with torch and PEFT in it has 500."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from sqft_plugins.cli.common import emit
from sqft_plugins.errors import SQFTError
from sqft_plugins.progress import PLAIN_SECONDS, say
from vllm_ext.private import make_private, remove_private
from vllm_ext.serve.server import Server, option_of
from vllm_ext.serve.supervise import (
    FORWARDED,
    NO_ANSWER,
    PATIENCE,
    Ending,
    check_port,
    served_names,
    started,
    wait_healthy,
)
from vllm_ext.variables import ADAPTER_COPIES, PLANE_DIR, PROMETHEUS, VLLM_KEY, VLLM_SOCKETS

PRIVATE = (PROMETHEUS, ADAPTER_COPIES, PLANE_DIR)
"""Variables of folders that go with the server: counters (vLLM wants that folder empty), adapters, planes."""
MAX_SOCKETS = 60
"""Characters of the folder that the sockets lie in: a socket's path may have 107, of which vLLM takes 37."""


def main(what: str) -> int:
    """what: server, log, timeout and as_json, as JSON → the exit code."""
    given = json.loads(what)
    try:
        return run(Server(**given["server"]), given["log"], given["timeout"], given["as_json"])
    except SQFTError as error:
        print(f"sqft: {error}", file=sys.stderr)
        return 2


def run(server: Server, log: str | None, timeout: float, as_json: bool) -> int:
    """Starts the server, says when it is ready, and stays until it ends → its exit code; 128 + the signal's number
    where a signal to this process had to be enforced."""
    for note in server.notes:
        say(note)
    say(server.shell())
    check_port(server.host, server.port)
    ending = Ending(PATIENCE + shutdown_timeout(server))

    with contextlib.ExitStack() as stack:
        # everything that goes with the server
        stack.enter_context(exit_at_signals())
        root = stack.enter_context(private_root())
        environment = {**private_folders(root), **server.environment}
        output = stack.enter_context(_log(log))
        process = stack.enter_context(started(server.command, environment, output, ending, [str(root)]))

        if wait_healthy(process, server.url, Waiting(log), timeout):
            names = _names(server)
            result = {**server.as_dict(), "names": names, "pid": process.pid}
            emit(as_json, result, lambda: _show_ready(server, names))
            sys.stdout.flush()
            process.wait()
            if ending.signal is None:
                say(f"the server ended by itself, with {exit_code(process)}: {log or 'its log above'} says why")
        elif ending.signal is None:
            where = f"{log} says why:\n{_tail(log)}" if log else "its log above says why"
            raise SQFTError(f"the server ended with {exit_code(process)} before it was healthy: {where}")
    return 128 + ending.signal if ending.signal and ending.killed else exit_code(process)


@contextlib.contextmanager
def exit_at_signals() -> Iterator[None]:
    """While it is entered, a signal ends this process as an exception does, so that what it made is removed."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def private_root() -> Iterator[Path]:
    """A folder that goes with the server; those of servers that were killed go when it is made."""
    root = make_private("sqft-serve-")
    try:
        yield root
    finally:
        remove_private(root)


def private_folders(root: Path) -> dict[str, str]:
    """Variable → folder below `root`, of those in PRIVATE that are not set."""
    folders = {name: root / name.lower() for name in PRIVATE if name not in os.environ}
    if VLLM_SOCKETS not in os.environ and len(str(root)) <= MAX_SOCKETS:
        folders[VLLM_SOCKETS] = root / "s"
    for folder in folders.values():
        folder.mkdir()
    return {name: str(folder) for name, folder in folders.items()}


def shutdown_timeout(server: Server) -> float:
    """vLLM's --shutdown-timeout: the seconds in which it finishes running requests at a signal."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(option_of(server.command, "--shutdown-timeout") or 0))
    return 0.0  # vLLM will refuse it


def _names(server: Server) -> list[str]:
    """What /v1/models lists; a server that does not let us look is served all the same."""
    key = option_of(server.command, "--api-key") or os.environ.get(VLLM_KEY)
    try:
        return served_names(server.url, key)
    except (*NO_ANSWER, ValueError, KeyError) as error:
        say(f"{server.url}/v1/models cannot be read ({error}): names of adapters are not shown")
        return [server.name]


class Waiting:
    """Says every 15 seconds that the server is not ready; its own log, where that is on stderr, says more."""

    def __init__(self, log: str | None):
        self._log, self._last = log, 0.0

    def __call__(self, seconds: float) -> None:
        if seconds - self._last >= PLAIN_SECONDS:
            self._last = seconds
            log = f", log in {self._log}" if self._log else ""
            say(f"waiting for the server: {seconds:.0f} s (35 s are usual){log}")


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """The server's exit code as a shell gives it: 128 + the signal's number where one ended it."""
    code = process.poll() or 0
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def _log(path: str | None) -> Iterator[IO[str] | int]:
    if path is None:
        yield sys.stderr.fileno()
        return
    try:
        file = open(path, "a")  # noqa: SIM115
    except OSError as error:
        raise SQFTError(f"--log {path} cannot be written ({error.strerror}): choose another path") from error
    with file:  # not within the try: errors of what runs meanwhile are not the log's
        yield file


def _tail(log: str) -> str:
    return "\n".join(Path(log).read_text(errors="replace").splitlines()[-12:])


def _show_ready(server: Server, names: list[str]) -> None:
    click.echo(f"ready at {server.url}: {', '.join(names)}")
    click.echo(server.curl(names[-1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
