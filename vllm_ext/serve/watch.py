"""Watching a running server: `python -m vllm_ext.serve.watch JSON`, what `sqft serve` becomes once it knows what to
start. 25 MiB, where a process with torch and PEFT in it has 500."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from sqft_plugins.cli.common import emit
from sqft_plugins.errors import SQFTError
from sqft_plugins.progress import PLAIN_SECONDS, say
from vllm_ext.serve.options import option_of
from vllm_ext.serve.server import Server
from vllm_ext.serve.supervise import NO_ANSWER, check_port, served_names, started, wait_healthy

PRIVATE = ("PROMETHEUS_MULTIPROC_DIR", "SQFT_ADAPTER_COPIES", "SQFT_PLANE_DIR")
"""Variables of folders that go with the server: counters (vLLM wants that folder empty), adapters, planes."""


def main(what: str) -> int:
    """what: server, log, timeout and as_json, as JSON → the exit code."""
    given = json.loads(what)
    try:
        return run(Server(**given["server"]), given["log"], given["timeout"], given["as_json"])
    except SQFTError as error:
        print(f"sqft: {error}", file=sys.stderr)
        return 2


def run(server: Server, log: str | None, timeout: float, as_json: bool) -> int:
    """Starts the server, tells when it is ready, and stays until it ends → its exit code."""
    for note in server.notes:
        say(note)
    say(server.shell())
    check_port(server.host, server.port)
    with contextlib.ExitStack() as stack:
        environment = {**stack.enter_context(private_folders()), **server.environment}
        output = stack.enter_context(_log(log))
        process = stack.enter_context(started(server.command, environment, output))
        if not wait_healthy(process, server.url, Waiting(log), timeout):
            where = f"{log} tells why:\n{_tail(log)}" if log else "its log above tells why"
            raise SQFTError(f"the server ended with {exit_code(process)} before it was healthy: {where}")
        names = _names(server)
        result = {**server.as_dict(), "names": names, "pid": process.pid}
        emit(as_json, result, lambda: _show_ready(server, names))
        sys.stdout.flush()
        process.wait()
        return exit_code(process)


@contextlib.contextmanager
def private_folders() -> Iterator[dict[str, str]]:
    """Variable → folder, of those in PRIVATE that are not set. They go with this process, also where the server was
    killed, and hold a lock meanwhile: what tidies /tmp (systemd-tmpfiles) leaves a locked folder alone."""
    with tempfile.TemporaryDirectory(prefix="sqft-serve-", ignore_cleanup_errors=True) as root:
        handle = os.open(root, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_SH)
        folders = {name: Path(root, name.lower()) for name in PRIVATE if name not in os.environ}
        for folder in folders.values():
            folder.mkdir()
        try:
            yield {name: str(folder) for name, folder in folders.items()}
        finally:
            os.close(handle)


def _names(server: Server) -> list[str]:
    """What /v1/models lists; a server that does not let us look is served all the same."""
    key = option_of(server.command, "--api-key") or os.environ.get("VLLM_API_KEY")
    try:
        return served_names(server.url, key)
    except (*NO_ANSWER, ValueError, KeyError) as error:
        say(f"{server.url}/v1/models cannot be read ({error}): names of adapters are not shown")
        return [server.name]


class Waiting:
    """Tells every 15 seconds that the server is not ready; its own log, where that is on stderr, tells more."""

    def __init__(self, log: str | None):
        self._log, self._last = log, 0.0

    def __call__(self, seconds: float) -> None:
        if seconds - self._last >= PLAIN_SECONDS:
            self._last = seconds
            log = f", log in {self._log}" if self._log else ""
            say(f"waiting for the server: {seconds:.0f} s (35 s are usual){log}")


def exit_code(process: subprocess.Popen) -> int:
    """The server's exit code as a shell tells it: 128 + the signal's number where one ended it."""
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
