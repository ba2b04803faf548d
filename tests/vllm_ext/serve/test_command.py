"""`sqft serve` without a server of vLLM: what would be started, and how a server is watched."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_adapters import write_adapter
from helpers_waiting import is_gone

from sqft_plugins.cli import main
from sqft_plugins.errors import DependencyError, SQFTError
from vllm_ext import version
from vllm_ext.serve.command import api_server, build, find_launcher, max_rank, vllm_serve
from vllm_ext.serve.guard import NoRuntimeLoading, closed
from vllm_ext.serve.server import given, option_of, words_of
from vllm_ext.serve.supervise import served_names, started, wait_healthy


@pytest.fixture(scope="module")
def int4(tiny_int4) -> Path:
    return tiny_int4("llama")


def test_the_command_serves_the_folder_by_its_name_and_states_its_choices(int4) -> None:
    server = build(int4, port=8123, launcher=api_server)
    words = server.command
    assert option_of(words, "--model") == str(int4)
    assert option_of(words, "--served-model-name") == server.name == int4.name
    assert (option_of(words, "--host"), option_of(words, "--port")) == ("127.0.0.1", "8123")
    assert server.environment == {"VLLM_CPU_INT4_W4A8": "0"}
    assert any("VLLM_CPU_INT4_W4A8=0" in note for note in server.notes)
    assert not given(words, "--enable-lora")
    assert build(int4.with_name("pruned"), launcher=api_server).environment == {}  # a float model: nothing to choose
    assert build(int4, launcher=vllm_serve).command[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", str(int4)]


def test_what_the_user_says_wins(int4) -> None:
    kept = build(int4, launcher=api_server, environment={"VLLM_CPU_INT4_W4A8": "1"})
    assert kept.environment == {}
    server = build(int4, launcher=api_server, passed=["--served-model-name=mine", "--max-loras", "9"])
    assert server.name == "mine"
    assert server.command[-2:] == ["--max-loras", "9"]
    assert server.command.count("--served-model-name") == 0
    for word in ("--port", "--host=0.0.0.0", "--model"):
        with pytest.raises(SQFTError, match="behind -- is not read by sqft serve"):
            build(int4, launcher=api_server, passed=[word, "1"])


def test_adapters_are_named_by_directory_and_sized_by_what_is_there(int4, tmp_path) -> None:
    with pytest.raises(SQFTError, match=r"--adapters .* is not a folder"):
        build(int4, tmp_path / "no", launcher=api_server)
    assert max_rank(tmp_path) == 32
    write_adapter(tmp_path / "small", r=8)
    write_adapter(tmp_path / "plain", r=40, choices=None, peft_type="LORA")
    write_adapter(tmp_path / "qa", r=300, choices=None, sparse=True, quantization_aware=True)  # needs no slot of vLLM's
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{")
    write_adapter(tmp_path / "odd", r=8, choices=None, peft_type="LORA", rank_pattern=["q_proj"])
    server = build(int4, tmp_path, slots=7, plane_bytes=123, plane_dir=tmp_path / "planes", launcher=api_server)
    assert option_of(server.command, "--max-lora-rank") == "64"
    assert option_of(server.command, "--max-loras") == "7"
    assert option_of(server.command, "--middleware") == "vllm_ext.serve.guard.NoRuntimeLoading"
    assert server.environment["SQFT_ADAPTERS_DIR"] == str(tmp_path)
    assert server.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert server.environment["SQFT_PLANE_CACHE_BYTES"] == "123"
    assert server.environment["SQFT_PLANE_DIR"] == str(tmp_path / "planes")


def test_adapters_on_a_cpu_are_served_by_the_model_runner_that_ours_know(int4, tmp_path, monkeypatch) -> None:
    def runner(found, **present):
        monkeypatch.setattr(version, "version_of", found.get)
        environment = build(int4, tmp_path, launcher=api_server, environment=present).environment
        return environment.get("VLLM_USE_V2_MODEL_RUNNER")

    assert runner({"vllm-cpu": "0.32.0"}) == runner({"vllm": "0.33.0+cpu"}) == "0"
    assert runner({"vllm": "0.33.0"}) is None
    assert runner({"vllm-cpu": "0.32.0"}, VLLM_USE_V2_MODEL_RUNNER="1") is None  # as it is


@pytest.mark.parametrize(
    ("adapter", "passed"),
    [
        ("text", []),
        ("my adapter", []),
        ("int4", []),  # the base's own name
        ("mine", ["--served-model-name", "other", "mine"]),
        ("mine", ["--served-model-name=mine"]),
        ("math", ["--served_model_name", "math@r8"]),
    ],
)
def test_an_adapter_whose_name_is_taken_keeps_the_server_from_starting(int4, tmp_path, adapter, passed) -> None:
    write_adapter(tmp_path / "plain")
    build(int4, tmp_path, launcher=api_server, passed=passed)
    write_adapter(tmp_path / adapter)
    with pytest.raises(SQFTError, match=rf"adapter '{adapter}' in .* cannot be served: .*rename it"):
        build(int4, tmp_path, launcher=api_server, passed=passed)


def test_a_server_that_takes_every_name_for_the_base_serves_no_adapters(int4, tmp_path) -> None:
    unchecked = {"VLLM_SKIP_MODEL_NAME_VALIDATION": "true"}
    build(int4, launcher=api_server, environment=unchecked)
    with pytest.raises(SQFTError, match="VLLM_SKIP_MODEL_NAME_VALIDATION=true: vLLM would answer for adapters"):
        build(int4, tmp_path, launcher=api_server, environment=unchecked)


def test_the_words_of_an_option_that_takes_several() -> None:
    assert words_of(["--a", "--name", "x", "y", "--b", "z"], "--name") == ["x", "y"]
    assert words_of(["--name", "x", "--name=z"], "--name") == ["z"]
    assert words_of(["--names", "x"], "--name") == []


def test_a_server_that_would_not_load_the_plug_in_is_not_started(int4) -> None:
    for allowed in ("", "other"):
        with pytest.raises(SQFTError, match=f"VLLM_PLUGINS='{allowed}' leaves it out: unset VLLM_PLUGINS"):
            build(int4, launcher=api_server, environment={"VLLM_PLUGINS": allowed})
    build(int4, launcher=api_server, environment={"VLLM_PLUGINS": "other,sqft"})


@pytest.mark.parametrize(
    ("found", "message"),
    [({}, "vLLM is not installed"), ({"vllm": "0.34.0"}, "vLLM is vllm 0.34.0, outside"),
     ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "they overwrite each other")],
)  # fmt: skip
def test_a_vllm_that_is_not_known_is_not_started(monkeypatch, found, message) -> None:
    monkeypatch.setattr(version, "version_of", found.get)
    with pytest.raises(DependencyError, match=message):
        find_launcher()
    for name, launcher in (("vllm", vllm_serve), ("vllm-cpu", api_server)):
        monkeypatch.setattr(version, "version_of", {name: "0.32.1"}.get)
        assert find_launcher() is launcher


@pytest.mark.parametrize(
    "words",
    [["--plane-cache-bytes", "-1"], ["--plane-cache-bytes", "inf"], ["--plane-cache-bytes", "nan"],
     ["--plane-cache-bytes", "1XB"], ["--plane-cache-bytes", "1,000"], ["--plane-cache-bytes", "2GB,4"],
     ["--plane-cache-bytes", "2Gbit"], ["--port", "0"], ["--port", "65536"], ["--max-loras", "0"]],
)  # fmt: skip
def test_a_number_that_cannot_be_is_an_error_of_its_option(int4, capsys, words) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", str(int4), "--dry-run", *words])
    assert end.value.code == 2
    assert f"Invalid value for '{words[0]}'" in capsys.readouterr().err


def test_an_empty_place_is_not_the_working_directory(int4, capsys, monkeypatch) -> None:
    monkeypatch.setattr("vllm_ext.serve.command.find_launcher", lambda: api_server)
    with pytest.raises(SystemExit) as end:
        main(["serve", str(int4), "--dry-run", "--json", "--adapters", "", "--plane-dir", ""])
    assert not end.value.code
    assert not {"SQFT_ADAPTERS_DIR", "SQFT_PLANE_DIR"} & json.loads(capsys.readouterr().out)["environment"].keys()


def test_a_dry_run_prints_what_a_shell_can_run(int4, capsys, monkeypatch) -> None:
    monkeypatch.setattr("vllm_ext.serve.command.find_launcher", lambda: api_server)
    folder = int4.parent / "with space"
    folder.exists() or folder.symlink_to(int4)
    for words in (["--json"], []):
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "serve",
                    str(folder),
                    "--dry-run",
                    "--plane-cache-bytes",
                    "1.5GiB",
                    *words,
                    "--",
                    "--max-model-len",
                    "9",
                ]
            )
        assert not end.value.code
        shown = capsys.readouterr().out
        if words:
            plan = json.loads(shown)
            assert plan["environment"]["SQFT_PLANE_CACHE_BYTES"] == str(3 << 29)
            assert plan["command"][-2:] == ["--max-model-len", "9"]
        else:
            assert shlex.split(shown.splitlines()[-1]) == [
                *(f"{key}={value}" for key, value in plan["environment"].items()),
                *plan["command"],
            ]
            assert option_of(plan["command"], "--model") == str(folder)


def test_words_that_are_handed_on_are_read_as_vllm_reads_them() -> None:
    words = ["--a", "1", "--long_name=2", "--a=3"]
    assert (option_of(words, "--a"), option_of(words, "--long-name"), option_of(words, "--b")) == ("3", "2", None)
    assert given(words, "--long-name")
    assert not given(words, "--long")


@pytest.mark.parametrize(
    "path",
    ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "//v1//load_lora_adapter/", "/proxy/v1/load_lora_adapter",
     "/adapters", "/adapters/math", "/v1/./load_lora_adapter"],
)  # fmt: skip
def test_endpoints_that_load_any_path_are_closed(path) -> None:
    assert closed(path)
    assert asyncio.run(_status(path)) == 403


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/health", "/", "/metrics"])
def test_other_endpoints_stay_open(path) -> None:
    assert not closed(path)
    assert asyncio.run(_status(path)) == 200


async def _status(path: str) -> int:
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    await NoRuntimeLoading(app)({"type": "http", "path": path}, None, send)
    return sent[0]["status"]


SERVER = """
import http.server, json, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
time.sleep(float(sys.argv[2]))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "base"}, {"id": "math@r16"}]}).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def server(tmp_path):
    """(command, url, log) of a small HTTP server that starts a process of its own, as vLLM does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = tmp_path / "server.py"
    file.write_text(SERVER)
    return [sys.executable, str(file), str(port)], f"http://127.0.0.1:{port}", tmp_path / "log"


def _child(log: Path) -> int:
    return int(log.read_text().split()[1])


def test_a_server_is_waited_for_and_leaves_nothing_behind(server, monkeypatch) -> None:
    command, url, log = server
    said = []
    monkeypatch.setattr("vllm_ext.serve.supervise.PLAIN_SECONDS", 0.0)
    monkeypatch.setattr("vllm_ext.serve.supervise.say", said.append)
    with open(log, "w") as file, started([*command, "1.5"], {}, file) as process:
        assert wait_healthy(process, url, timeout=60, log="server.log")
        assert said[0].startswith("waiting for the server: ")
        assert said[0].endswith("log in server.log")
        assert served_names(url) == ["base", "math@r16"]
    assert process.returncode == -signal.SIGTERM
    assert is_gone(_child(log))


def test_signals_are_handed_on_and_the_exit_code_is_the_servers(server) -> None:
    command, url, log = server
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background
    with open(log, "w") as file, started([*command, "0"], {}, file) as process:
        assert wait_healthy(process, url, timeout=60)
        os.kill(os.getpid(), signal.SIGINT)
        assert process.wait(20) == 7
    assert is_gone(_child(log))
    assert signal.getsignal(signal.SIGINT) is before  # from now on the signal is ours again


def test_a_server_that_ends_or_is_never_ready_is_told(server) -> None:
    command, url, log = server
    with open(log, "w") as file, started([sys.executable, "-c", "raise SystemExit(3)"], {}, file) as process:
        assert not wait_healthy(process, url, timeout=60)
        assert process.returncode == 3
    with (
        open(log, "w") as file, started([*command, "600"], {}, file) as process,
        pytest.raises(SQFTError, match="is not healthy after 2 s"),
    ):  # fmt: skip
        wait_healthy(process, url, timeout=2)
    assert process.returncode is not None


def test_counters_of_several_processes_add_up(tmp_path) -> None:
    pytest.importorskip("prometheus_client")
    code = """
from vllm_ext import metrics
metrics.count("plane_cache_loads", 3)
metrics.count("plane_cache_loads")
metrics.gauge("plane_cache_bytes", 100)
"""
    collect = """
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for words in (code, code, collect):
        done = subprocess.run(
            [sys.executable, "-c", words], env=environment, capture_output=True, text=True, check=True
        )
    assert "sqft_plane_cache_loads_total 8.0" in done.stdout
    assert "sqft_plane_cache_bytes 200.0" in done.stdout


def test_counting_needs_no_prometheus() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
from vllm_ext import metrics
metrics.count("plane_cache_hits")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
