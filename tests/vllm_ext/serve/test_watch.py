"""What `sqft serve` becomes: the watch over a server, here a small one over HTTP that shows its environment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from sqft_plugins.errors import SQFTError
from vllm_ext.serve.server import Server
from vllm_ext.serve.supervise import served_names, started, wait_healthy
from vllm_ext.serve.watch import PRIVATE, run

SERVER = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked_for_names = self.path == "/v1/models"
        self.send_response(401 if asked_for_names and "--closed" in sys.argv else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "base"}]}).encode())
names = sys.argv[2].split(",")
print(json.dumps({name: os.environ[name] for name in names}), flush=True)
for name in names:
    open(os.path.join(os.environ[name], "left behind"), "w").close()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(port, monkeypatch, tmp_path) -> Server:
    for name in PRIVATE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-c", SERVER, str(port), ",".join(PRIVATE)]
    return Server(command, {}, "127.0.0.1", port, "base")


@contextlib.contextmanager
def watched(server: Server, log: Path):
    """The process of the watch, once it has told that the server is ready, and what it told."""
    what = {"server": asdict(server), "log": str(log), "timeout": 60, "as_json": False}
    with subprocess.Popen(
        [sys.executable, "-m", "vllm_ext.serve.watch", json.dumps(what)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def test_the_folders_of_a_server_go_with_it_and_its_log_grows(server, tmp_path) -> None:
    log = tmp_path / "log"
    log.write_text("what ended it yesterday\n")
    with watched(server, log) as (process, ready):
        assert ready == f"ready at {server.url}: base\n"
        folders = json.loads(log.read_text().splitlines()[1])
        assert all(Path(folder, "left behind").exists() for folder in folders.values())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert not any(Path(folder).exists() for folder in folders.values())
    assert [entry.name for entry in tmp_path.iterdir()] == ["log"]
    assert log.read_text().startswith("what ended it yesterday\n")


def test_a_server_whose_names_cannot_be_read_is_served_all_the_same(server, tmp_path) -> None:
    server.command.append("--closed")
    with watched(server, tmp_path / "log") as (process, ready):
        assert ready == f"ready at {server.url}: base\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert "/v1/models cannot be read (HTTP Error 401: Unauthorized)" in process.stderr.read()


def test_a_port_that_is_taken_is_told_before_anything_starts(server, port, tmp_path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(SQFTError, match=f"--port {port} .*in use"):
            run(server, str(tmp_path / "log"), 60, False)
    assert not (tmp_path / "log").exists()


def test_a_log_that_cannot_be_written_is_told(server, tmp_path) -> None:
    with pytest.raises(SQFTError, match=r"--log .* cannot be written \(Is a directory\)"):
        run(server, str(tmp_path), 60, False)
    assert not list(tmp_path.iterdir())


def test_a_proxy_is_not_asked_for_a_server_of_our_own(server, monkeypatch) -> None:
    with socket.socket() as nobody:  # bound, not listening: connections are refused
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        folders = dict.fromkeys(PRIVATE, os.environ["TMPDIR"])
        with started(server.command, folders, subprocess.DEVNULL) as process:
            assert wait_healthy(process, server.url, timeout=10)
            assert served_names(server.url) == ["base"]


def test_what_answers_in_another_language_is_not_healthy(server, port) -> None:
    chat = f"""
import socket
with socket.create_server(("127.0.0.1", {port})) as server:
    while True:
        server.accept()[0].sendall(b"SSH-2.0-hello" + bytes([13, 10]))
"""
    with (
        started([sys.executable, "-c", chat], {}, subprocess.DEVNULL) as process,
        pytest.raises(SQFTError, match="is not healthy after 2 s"),
    ):
        wait_healthy(process, server.url, timeout=2)


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000"), ("::1", "http://[::1]:8000"),
     ("localhost", "http://localhost:8000")],
)  # fmt: skip
def test_an_address_is_written_as_a_url(host, url) -> None:
    assert Server([], {}, host, 8000, "base").url == url
