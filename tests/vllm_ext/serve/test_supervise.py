"""How a server ends: by one signal at any moment, within a bound, with all it started; also when `sqft serve` itself
is killed. The server here ignores signals, as vLLM does while it loads, and has a child in a process group of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers_waiting import is_gone

from vllm_ext import private
from vllm_ext.orphans import end_with_parent
from vllm_ext.private import make_private, remove_abandoned, remove_private
from vllm_ext.serve.server import Server
from vllm_ext.serve.supervise import Ending, started, wait_healthy
from vllm_ext.serve.watch import PRIVATE, shutdown_timeout

DEAF = """
import http.server, os, signal, subprocess, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=os.setpgrp)
print("child", child.pid, flush=True)
if "--loads" in sys.argv:
    time.sleep(600)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "base"}]}')
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def server(monkeypatch, tmp_path) -> Server:
    for name in PRIVATE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Server([sys.executable, "-c", DEAF, str(port)], {}, "127.0.0.1", port, "base")


@contextlib.contextmanager
def watched(server: Server, log: Path):
    """The watch over the server, once that has started its child, and the child's number."""
    what = {"server": asdict(server), "log": str(log), "timeout": 60, "as_json": False}
    code = "import sys; from vllm_ext.serve import watch; watch.PATIENCE = 1.0; sys.exit(watch.main(sys.argv[1]))"
    with subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(what)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while not (log.is_file() and log.read_text().endswith("\n")):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.02)
            yield process, int(log.read_text().split()[1])
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["loading", "healthy"])
def test_one_signal_ends_a_server_that_ignores_it_within_the_bound(server, tmp_path, number, moment) -> None:
    if moment == "loading":
        server.command.append("--loads")
    with watched(server, tmp_path / "log") as (process, child):
        if moment == "healthy":
            assert process.stdout.readline().startswith("ready at")
        process.send_signal(number)
        begun = time.monotonic()
        assert process.wait(20) == 128 + number
        assert time.monotonic() - begun < 9  # 1 s of patience; then a check of /health may be under way
        assert "before it was healthy" not in process.stderr.read()
    assert is_gone(child)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log"]


def test_a_second_signal_does_not_wait(server, tmp_path) -> None:
    with open(tmp_path / "log", "w") as log:
        ending = Ending(patience=600)
        with started(server.command, {}, log, ending) as process:
            assert wait_healthy(process, server.url, timeout=60)
            os.kill(os.getpid(), signal.SIGTERM)
            assert process.poll() is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert process.wait(20) == -signal.SIGKILL
    assert ending.killed
    assert is_gone(int((tmp_path / "log").read_text().split()[1]))


def test_a_killed_watch_takes_the_server_its_children_and_its_folders_with_it(server, tmp_path) -> None:
    with watched(server, tmp_path / "log") as (process, child):
        assert list(tmp_path.glob("sqft-serve-*"))
        process.kill()
        process.wait(20)
        assert is_gone(child)
    for _ in range(100):
        if not list(tmp_path.glob("sqft-serve-*")):
            break
        time.sleep(0.05)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ([], 0.0),
        (["--shutdown-timeout", "30"], 30.0),
        (["--shutdown_timeout=5"], 5.0),
        (["--shutdown-timeout", "x"], 0.0),
    ],
)
def test_the_time_in_which_vllm_finishes_requests_is_added_to_the_bound(words, seconds) -> None:
    assert shutdown_timeout(Server(words, {}, "127.0.0.1", 1, "base")) == seconds


# --- what a killed process leaves ---


def test_folders_that_nobody_holds_go_and_others_stay(tmp_path) -> None:
    held = make_private("sqft-x-", tmp_path)
    (tmp_path / "sqft-x-dead" / "deep").mkdir(parents=True)
    (tmp_path / "sqft-y-other").mkdir()
    (tmp_path / "sqft-x-file").write_text("")
    (tmp_path / "sqft-x-link").symlink_to(tmp_path / "sqft-y-other")
    code = (
        "import sys, time; from vllm_ext.private import make_private\n"
        "print(make_private('sqft-x-', sys.argv[1]), flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        theirs = Path(other.stdout.readline().strip())
        remove_abandoned("sqft-x-", tmp_path)
        assert {entry.name for entry in tmp_path.iterdir()} == {
            held.name, theirs.name, "sqft-y-other", "sqft-x-file", "sqft-x-link",
        }  # fmt: skip
        other.kill()
        other.wait()
    mine = make_private("sqft-x-", tmp_path)
    assert not theirs.exists()
    assert held.is_dir()
    for folder in (held, mine):
        remove_private(folder)
        remove_private(folder)
        assert not folder.exists()


def test_a_folder_that_another_process_took_for_abandoned_before_it_was_locked_is_made_again(
    tmp_path, monkeypatch
) -> None:
    flock, taken = fcntl.flock, []

    def too_late(handle, how):
        if not taken:
            taken.append(next(tmp_path.glob("sqft-x-*")))
            taken[0].rmdir()
        return flock(handle, how)

    monkeypatch.setattr(private.fcntl, "flock", too_late)
    made = make_private("sqft-x-", tmp_path)
    assert made.is_dir()
    assert made != taken[0]
    remove_private(made)


def _engine(said) -> None:
    said.put((os.getpid(), end_with_parent()))
    time.sleep(600)


def _api_server(said, name) -> None:
    multiprocessing.get_context("spawn").Process(target=_engine, args=(said,), name=name, daemon=False).start()
    time.sleep(600)


@pytest.mark.parametrize(("name", "ends"), [("EngineCore_DP0", True), ("Mine", False)])
def test_an_engine_ends_when_its_api_server_was_killed(name, ends) -> None:
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    server = context.Process(target=_api_server, args=(said, name))
    server.start()
    engine, watches = said.get(timeout=60)
    try:
        assert watches is ends
        server.kill()
        server.join()
        time.sleep(0.5)
        assert is_gone(engine) if ends else Path(f"/proc/{engine}").exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine, signal.SIGKILL)
