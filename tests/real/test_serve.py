"""The real model behind a real server, asked by the openai client: one start for all of this file."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import shutil
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from serving import OPERATOR, Served, serve, stock

pytestmark = [
    pytest.mark.slow,  # some 4 minutes: two engines and a server on the real model
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
PROMPTS = [
    "The capital of France is",
    "Question: What do bees make?\nAnswer:",
    "Anna has 5 red balls, 3 blue balls and 7 green balls. How many blue balls?\nAnswer:",
]
TOKENS = 8
RANKS = (32, 24, 16)
CLOSE = 1e-3
TARGETS = r".*layers\.[0-5]\..*(q_proj|k_proj|v_proj|up_proj|down_proj)"


@pytest.fixture(scope="module")
def adapters(demo, tmp_path_factory) -> Path:
    """math-qa through the INT4 grid, dense-a and dense-b, a masked one, a damaged one. Random weights: what is asked
    here is whether they are computed right."""
    out, _ = demo
    folder = tmp_path_factory.mktemp("served") / "adapters"
    _save(folder / "math-qa", out / "int4", quantization_aware=True)
    _save(folder / "dense-a", out / "pruned", sparse=False, seed=1, size=1e-2)
    shutil.copytree(out / "adapter", folder / "masked")
    shutil.copytree(folder / "dense-a", folder / "cut")
    weights = folder / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def _save(folder: Path, base: Path, seed: int = 0, size: float = 1e-2, **config) -> None:
    from peft import get_peft_model

    from peft_ext import SQFTConfig
    from sqft_plugins.checkpoint import load_model

    settings = {
        "r": max(RANKS), "lora_alpha": 64, "rank_choices": list(RANKS), "target_modules": TARGETS,
        "task_type": "CAUSAL_LM", **config,
    }  # fmt: skip
    tuned = get_peft_model(load_model(base, dtype=torch.float32), SQFTConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    tuned.save_pretrained(str(folder))


@pytest.fixture(scope="module")
def expected(demo, adapters, tmp_path_factory) -> dict[str, list]:
    """What stock vLLM answers: the INT4 folder, and the two folders that math-qa is merged into."""
    from sqft_plugins.tune.merge import merge_folder

    out, _ = demo
    folder = tmp_path_factory.mktemp("merged")
    for rank in (32, 16):
        merge_folder(out / "int4", adapters / "math-qa", folder / f"r{rank}", rank)
    found = stock([out / "int4", folder / "r32", folder / "r16"], PROMPTS, TOKENS, folder)
    return dict(zip(("int4", "math-qa@r32", "math-qa@r16"), found, strict=True))


@pytest.fixture(scope="module")
def server(demo, adapters, tmp_path_factory, expected):  # `expected` first: one engine at a time
    out, _ = demo
    log = tmp_path_factory.mktemp("log") / "server.log"
    # vLLM's own kernel under the planes: then the sums are the merged folder's, to the last bit
    with serve(
        out / "int4", log, "--adapters", str(adapters), "--plane-cache-bytes", "512MiB",
        passed=["--dtype", "bfloat16", "--max-num-seqs", "16"], SQFT_VLLM_OPERATOR=OPERATOR,
    ) as served:  # fmt: skip
        yield served


def ask(served: Served, name: str, prompt: str, tokens: int = TOKENS) -> dict:
    answer = served.client().completions.create(model=name, prompt=prompt, max_tokens=tokens, temperature=0, logprobs=5)
    found = answer.choices[0]
    return {"text": found.text, "tokens": found.logprobs.tokens, "logprobs": found.logprobs.token_logprobs}


def together(served: Served, asked: list[tuple[str, str]]) -> list[dict]:
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda pair: ask(served, *pair), asked))


def status(served: Served, name: str) -> tuple[int, str]:
    """The HTTP status and the message for one request to a model."""
    from openai import APIStatusError

    try:
        ask(served, name, PROMPTS[0], 1)
    except APIStatusError as error:
        return error.status_code, str(error.body.get("message") if isinstance(error.body, dict) else error.body)
    return 200, ""


def same(found: dict, wanted: dict, close: float = CLOSE) -> None:
    """Tokens and their log-probabilities."""
    assert found["text"] == wanted["text"]
    for ours, theirs in zip(found["logprobs"], wanted["logprobs"], strict=True):
        assert math.isclose(ours, theirs, abs_tol=close), (found, wanted)


def test_the_base_answers_as_stock_vllm_does(server, expected) -> None:
    assert server.ready["names"][0] == server.ready["name"] == "int4"
    for prompt, wanted in zip(PROMPTS, expected["int4"], strict=True):
        same(ask(server, "int4", prompt), wanted)


def test_a_value_plane_answers_as_the_merged_folder_served_by_stock_vllm(server, expected) -> None:
    texts = set()
    for name in ("math-qa@r32", "math-qa@r16"):
        for prompt, wanted in zip(PROMPTS, expected[name], strict=True):
            same(ask(server, name, prompt), wanted)
            texts.add((prompt, *wanted["logprobs"]))
    texts |= {(prompt, *wanted["logprobs"]) for prompt, wanted in zip(PROMPTS, expected["int4"], strict=True)}
    assert len(texts) == 3 * len(PROMPTS)  # three models, three answers


def test_every_name_is_listed_and_works_side_by_side(server) -> None:
    listed = {model.id for model in server.client().models.list()}
    names = ["int4", "math-qa", "math-qa@max", "math-qa@min", "dense-a", "dense-a@r16", "dense-a@max"]
    assert set(names) <= listed
    assert not {name for name in listed if name.startswith(("masked", "cut"))}
    prompt = PROMPTS[1]
    alone = [ask(server, name, prompt) for name in names]
    for found, wanted in zip(together(server, [(name, prompt) for name in names]), alone, strict=True):
        # bf16: in a larger batch sums run in another order, so of two near tokens the other may win
        assert abs(found["logprobs"][0] - wanted["logprobs"][0]) < 0.1
    assert len({entry["logprobs"][0] for entry in alone}) >= 4


@pytest.mark.parametrize(
    "name",
    ["nobody", "../adapters/dense-a", "/etc/passwd", "dense-a/../dense-a", "%2e%2e%2fdense-a", "dense-a%40r16",
     "dense-a@r17", "dense-a@../x", "dense-a\x00", "a" * 10_000, "dense-a?sub=r16", "~root", ".", "@r16"],
)  # fmt: skip
def test_names_that_are_none_get_an_error_and_the_server_lives_on(server, name) -> None:
    code, message = status(server, name)
    assert code in (400, 404), message
    assert len(message) < 1000
    assert status(server, "dense-a@r16") == (200, "")


def test_what_cannot_be_served_is_told_with_the_way_out(server) -> None:
    code, message = status(server, "masked")
    assert code == 400
    assert "sqft merge" in message
    code, message = status(server, "cut")
    assert code == 400
    assert "copy the adapter again" in message
    assert status(server, "int4") == (200, "")


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "//v1/load_lora_adapter", "/adapters"]
)
def test_nobody_can_have_a_folder_of_his_choice_loaded(server, path, adapters) -> None:
    body = json.dumps(
        {"lora_name": "mine", "lora_path": str(adapters / "dense-a"), "name": "mine", "src": "/"}
    ).encode()
    request = urllib.request.Request(f"{server.url}{path}", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 403


def test_many_variants_come_and_go_under_load(server, adapters) -> None:
    """The full form of this is `load(requests=200)`: docs/how-to/serve-vllm.md has its numbers."""
    found = load(server, adapters, requests=60)
    assert found["failed"] == []
    assert found["answered"] >= 48  # all that were there all the time; how many of the others is a matter of speed
    metrics = server.metrics()
    assert metrics["sqft_plane_cache_loads_total"] >= 3
    assert metrics["sqft_plane_cache_hits_total"] > 0
    assert metrics["sqft_plane_cache_bytes"] > 0


def test_the_server_ends_at_ctrl_c_and_nothing_stays_behind(server) -> None:
    assert server.stop() in (0, 130)


def load(server: Served, adapters: Path, requests: int, clients: int = 8, seed: int = 0) -> dict:
    """`clients` ask among 20 variants (room for 4), while copies of an adapter are added, asked for and removed.

    failed: answers that were no success for a name that was there all the time, or other than 404 or 400 for one that
    came and went. memory: bytes after each third of the requests.
    """
    steady = ["int4", *(f"math-qa@{rank}" for rank in ("max", "min", "r32", "r24", "r16"))]
    for number in range(3):
        if not (adapters / f"dense-{number}").exists():
            shutil.copytree(adapters / "dense-a", adapters / f"dense-{number}")
        steady += [f"dense-{number}@{rank}" for rank in ("max", "r24", "r16", "min")]
    steady += ["dense-a", "math-qa"]
    assert len(steady) == 20
    choose, failed, answered, memory = random.Random(seed), [], [], []
    free = threading.Semaphore(clients)  # the next name is chosen when a client is free, not long before it is asked

    def one(name: str) -> None:
        try:
            code, message = status(server, name)
        finally:
            free.release()
        passing = name.startswith("passing")
        if code == 200:
            answered.append(name)
        elif not (passing and code in (400, 404)):
            failed.append((name, code, message))

    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        for third in range(3):
            jobs = []
            for number in range(requests // 3):
                name = choose.choice(steady)
                if number % 10 == 0:
                    shutil.copytree(adapters / "dense-a", adapters / f"passing-{third}-{number}")
                if number % 10 in (2, 5):
                    name = f"passing-{third}-{number - number % 10}@r16"
                if number % 10 == 6:
                    shutil.rmtree(adapters / f"passing-{third}-{number - 6}")
                free.acquire()
                jobs.append(pool.submit(one, name))
            for job in jobs:
                job.result()
            memory.append(server.memory())
    for folder in adapters.glob("passing-*"):
        shutil.rmtree(folder)
    return {
        "failed": failed, "answered": len(answered), "memory": memory, "seconds": time.monotonic() - start,
        "metrics": server.metrics(),
    }  # fmt: skip
