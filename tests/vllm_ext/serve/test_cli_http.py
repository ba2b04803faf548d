"""A real server of a tiny model over HTTP: what an operator does to it while clients ask."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers_adapters import write_adapter

pytest.importorskip("vllm", reason="vLLM is not installed")

sys.path.insert(0, str(Path(__file__).parents[2] / "real"))

from serving import Served, descendants, serve

pytestmark = [pytest.mark.vllm, pytest.mark.slow]  # a minute or two: two starts of a server
KEY = "S3CRET"
MODULES = {"model.layers.0.self_attn.q_proj": (128, 128), "model.layers.1.mlp.down_proj": (256, 128)}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> Path:
    """`math`, and the two versions `.v0` and `.v1` of it, which are no names."""
    root = tmp_path_factory.mktemp("adapters")
    for number in (0, 1):
        write_adapter(root / f".v{number}", MODULES, seed=number)
    shutil.copytree(root / ".v0", root / "math")
    write_adapter(root / "law", MODULES, seed=5)
    return root


@pytest.fixture(scope="module")
def server(tiny_int4, adapters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    options = ["--adapters", str(adapters), "--max-loras", "1"]
    with serve(
        tiny_int4("llama"), folder / "log", *options, passed=["--max-model-len", "256", "--api-key", KEY],
        TMPDIR=str(folder),
    ) as served:  # fmt: skip
        yield served


def ask(served: Served, path: str, key: str | None = KEY, **body) -> tuple[int, dict]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{served.url}{path}", json.dumps(body).encode() if body else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def complete(served: Served, name: str, tokens: int = 3) -> tuple[int, str]:
    status, answer = ask(
        served, "/v1/completions", model=name, prompt="Question: ", max_tokens=tokens, temperature=0, ignore_eos=True
    )
    return status, answer["choices"][0]["text"] if status == 200 else answer["error"]["message"]


def test_an_adapter_that_is_swapped_all_the_time_is_one_version_or_the_other(server, adapters) -> None:
    shutil.copytree(adapters / ".v1", adapters / "other")
    texts = {complete(server, name) for name in ("math", "other")}
    assert len(texts) == 2
    stop = threading.Event()

    def swap() -> None:
        while not stop.wait(0.05):
            (adapters / "math").rename(adapters / ".aside")
            (adapters / "other").rename(adapters / "math")
            (adapters / ".aside").rename(adapters / "other")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: complete(server, "math"), range(100)))
    finally:
        stop.set()
        swapping.join()
    assert set(found) <= texts


def test_after_a_broken_replacement_the_version_before_answers(server, adapters) -> None:
    before = complete(server, "math")
    assert before[0] == 200
    (adapters / "math" / "adapter_model.safetensors").write_bytes(b"broken")
    assert complete(server, "math") == before
    assert complete(server, "math@min")[0] == 200
    assert "the version before answers on" in server.log.read_text()


def test_a_lost_copy_fails_its_requests_and_the_server_lives_on(server) -> None:
    right = complete(server, "law")
    copies = list(server.log.parent.glob("sqft-serve-*/sqft_adapter_copies/*/*"))
    assert copies
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(complete, server, "math", 200)
        time.sleep(1)
        waiting = pool.submit(complete, server, "law")
        base = pool.submit(complete, server, server.ready["name"], 20)
        time.sleep(0.5)
        for copy in copies:
            shutil.rmtree(copy)
        status, message = waiting.result()
        assert running.result()[0] == base.result()[0] == 200
    assert (status, message) == right or (status == 503 and message.startswith("adapter law: "))
    assert complete(server, "law") == right


def test_nothing_but_the_pulse_is_answered_without_the_key(server) -> None:
    assert KEY not in json.dumps(server.ready)
    for path in ("/health", "/version"):
        assert ask(server, path, key=None)[0] == 200
    for path in ("/v1/models", "/tokenize", "/invocations", "/scale_elastic_ep", "/is_scaling_elastic_ep", "/docs"):
        assert ask(server, path, key=None, **({} if path == "/v1/models" else {"model": "x"}))[0] == 401
    assert ask(server, "/tokenize", model=server.ready["name"], prompt="a")[0] == 200


def test_every_door_leads_to_the_adapter_that_was_named(server) -> None:
    body = {"prompt": "Question: ", "max_tokens": 3, "temperature": 0, "ignore_eos": True}
    for name in ("law@max", "law@min", server.ready["name"]):
        status, answer = ask(server, "/invocations", model=name, **body)
        assert (status, answer["model"]) == (200, name)
        assert complete(server, name) == (200, answer["choices"][0]["text"])


def test_a_strength_of_0_is_the_base_and_of_1_the_adapter(server) -> None:
    base, whole = (complete(server, name, 8) for name in (server.ready["name"], "law"))
    assert base != whole
    assert [complete(server, f"law*{strength}", 8) for strength in (0, 1)] == [base, whole]
    assert complete(server, "law@min*0.5", 8)[0] == 200
    assert "strength '11' is no number from -10 to 10" in complete(server, "law*11")[1]
    assert complete(server, "law@r5*0.5")[0] == 400


@pytest.mark.parametrize("name", ["org/name", "nobody", "../math", "math@../x", "math*11"])
def test_a_name_that_is_not_there_is_404_with_the_reason_at_every_door(server, name) -> None:
    status, message = complete(server, name)
    assert status == 404
    assert "does not exist: " in message
    messages = [{"role": "user", "content": "a"}]
    assert ask(server, "/v1/chat/completions", model=name, messages=messages)[0] == 404
    assert ask(server, "/v1/responses", model=name, input="a")[0] == 404
    assert ask(server, "/invocations", model=name, prompt="a")[0] == 404
    assert ask(server, "/tokenize", model=name, prompt="a")[0] == 404


def test_ctrl_c_with_requests_running_ends_everything_within_the_bound(server) -> None:
    pids = descendants(server.process.pid)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            try:
                complete(server, server.ready["name"], 200)
            except OSError:
                return

    clients = [threading.Thread(target=flood, daemon=True) for _ in range(4)]
    for client in clients:
        client.start()
    time.sleep(2)
    begun = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    server.process.wait(20)
    assert time.monotonic() - begun < 12
    stop.set()
    for _ in range(100):
        left = [pid for pid in pids if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]
        if not left:
            break
        time.sleep(0.1)
    assert not left
    assert not list(server.log.parent.glob("sqft-serve-*"))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
