"""Watching a running server: `python -m vllm_ext.serve.watch JSON`, what `sqft serve` becomes once it knows what to
start. 25 MiB, where a process with torch and PEFT in it has 500."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import click

from sqft_plugins.cli.common import emit
from sqft_plugins.errors import SQFTError
from sqft_plugins.progress import say
from vllm_ext.private import make_private, remove_private
from vllm_ext.serve.server import Server, option_of
from vllm_ext.serve.supervise import (
    FORWARDED,
    NO_ANSWER,
    PATIENCE,
    Ending,
    check_port,
    handling,
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
        stack.enter_context(handling(dict.fromkeys(FORWARDED, leave)))
        root = make_private("sqft-serve-")  # those of servers that were killed go now
        stack.callback(remove_private, root)
        environment = {**private_folders(root), **server.environment}
        output = stack.enter_context(open_log(log)) if log is not None else sys.stderr.fileno()
        process = stack.enter_context(started(server.command, environment, output, ending, [str(root)]))

        if wait_healthy(process, server.url, timeout, log):
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


def leave(number: int, _: object) -> None:
    """Ends this process at a signal as an exception does, so that what it made is removed."""
    raise SystemExit(128 + number)


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


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """The server's exit code as a shell gives it: 128 + the signal's number where one ended it."""
    code = process.poll() or 0
    return 128 - code if code < 0 else code


def open_log(path: str) -> IO[str]:
    try:
        return open(path, "a")
    except OSError as error:
        raise SQFTError(f"--log {path} cannot be written ({error.strerror}): choose another path") from error


def _tail(log: str) -> str:
    return "\n".join(Path(log).read_text(errors="replace").splitlines()[-12:])


def _show_ready(server: Server, names: list[str]) -> None:
    click.echo(f"ready at {server.url}: {', '.join(names)}")
    click.echo(server.curl(names[-1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
