"""Watching a running server: `python -m vllm_ext.serve.watch JSON`, what `sqft serve` becomes once it knows what to
start. 25 MiB, where a process with torch and PEFT in it has 500."""

from __future__ import annotations

import contextlib
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
from vllm_ext.serve.supervise import served_names, started, wait_healthy

METRICS = "PROMETHEUS_MULTIPROC_DIR"


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
    with contextlib.ExitStack() as stack:
        environment = dict(server.environment)
        if METRICS not in os.environ:  # where workers leave their counters for /metrics; vLLM wants it empty
            environment[METRICS] = stack.enter_context(tempfile.TemporaryDirectory(prefix="sqft-metrics-"))
        output = stack.enter_context(_log(log))
        process = stack.enter_context(started(server.command, environment, output))
        if not wait_healthy(process, server.url, Waiting(log), timeout):
            where = f"{log} tells why:\n{_tail(log)}" if log else "its log above tells why"
            raise SQFTError(f"the server ended with {exit_code(process)} before it was healthy: {where}")
        key = option_of(server.command, "--api-key") or os.environ.get("VLLM_API_KEY")
        names = served_names(server.url, key)
        result = {**server.as_dict(), "names": names, "pid": process.pid}
        emit(as_json, result, lambda: _show_ready(server, names))
        sys.stdout.flush()
        process.wait()
        return exit_code(process)


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
        with open(path, "w") as file:
            yield file
    except OSError as error:
        raise SQFTError(f"--log {path} cannot be written ({error.strerror}): choose another path") from error


def _tail(log: str) -> str:
    return "\n".join(Path(log).read_text(errors="replace").splitlines()[-12:])


def _show_ready(server: Server, names: list[str]) -> None:
    click.echo(f"ready at {server.url}: {', '.join(names)}")
    click.echo(server.curl(names[-1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
