"""What vLLM's API server does with names: its own OpenAIServingModels, with an engine that only notes requests."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from helpers_adapters import change, write_adapter
from helpers_waiting import goes

pytest.importorskip("vllm", reason="vLLM is not installed")

from helpers_serving import resolve
from starlette.requests import Request
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.lora.request import LoRARequest

from vllm_ext.adapters.admission import unwrapped
from vllm_ext.adapters.kinds import HANDLERS
from vllm_ext.adapters.names import parse_path


def test_every_listed_name_is_served_under_an_id_and_a_path_of_its_own(models):
    names = [card.id for card in asyncio.run(models.show_available_models()).data]
    ranks = ["max", "heuristic", "min", "r8", "r6", "r4", "searched"]
    assert names == ["base", "math", *(f"math@{rank}" for rank in ranks), "plain"]
    requests = [resolve(models, name) for name in names[1:]]
    assert [request.lora_name for request in requests] == names[1:]
    assert len({request.lora_int_id for request in requests}) == len({request.lora_path for request in requests}) == 9
    assert models.engine_client.loaded == requests
    assert resolve(models, "math") is requests[0]  # the second time nothing is loaded
    assert len(models.engine_client.loaded) == 9
    listed = [card.id for card in asyncio.run(models.show_available_models()).data]
    assert sorted(listed) == sorted(names)


@pytest.mark.parametrize(
    "name",
    ["org/math", "../math", "/etc", "m" * 10_000, "%2e%2e%2fmath", "math@../x", "math\0", ".", "math*11"],
)
def test_a_name_that_cannot_be_one_is_404_and_leaves_nothing_behind(models, name):
    status, message = resolve(models, name)
    assert status == 404
    assert "is not NAME or NAME@RANK" in message or "characters" in message or "strength" in message
    assert len(message) < 400
    assert not models.lora_requests
    assert not len(models.lora_resolver_lock)


@pytest.mark.parametrize("name", ["text", "base"])
def test_an_adapter_that_arrives_under_a_name_with_a_meaning_is_refused(models, root, name):
    write_adapter(root / name)
    status, message = resolve(models, name)
    assert status == 400
    assert "rename it" in message
    assert name not in [card.id for card in asyncio.run(models.show_available_models()).data[1:]]


def test_a_chat_with_parts_gets_no_adapter_that_it_did_not_ask_for(models, monkeypatch):
    """Also where a kind of parts is new and no name of ours is refused for it."""
    time.sleep(0.2)  # until a later writing must show
    resolve(models, "plain")
    chat = SimpleNamespace(model="base", messages=[{"role": "user", "content": [{"type": "plain_text", "text": "Hi"}]}])
    serving = BaseServing.__new__(BaseServing)
    serving.models = models
    assert serving._maybe_get_adapters(chat, supports_default_mm_loras=True) is None
    models.lora_requests["audio"] = static = LoRARequest("audio", 99, "/vllms/own")
    chat.messages[0]["content"].append({"type": "audio_url"})
    assert serving._maybe_get_adapters(chat, supports_default_mm_loras=True) is static
    chat.model = "plain"
    assert serving._maybe_get_adapters(chat, supports_default_mm_loras=True).lora_name == "plain"


def test_an_unknown_name_is_404_and_leaves_nothing_behind(models):
    for index in range(100):
        assert resolve(models, f"unknown{index}")[0] == 404
    assert not models.lora_requests
    assert not len(models.lora_resolver_lock)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math@r5", "use max, heuristic, min, r8, r6, r4, searched"),
        ("math@searchd", "is not served at 'searchd'"),
        ("plain@max", "fixed rank: ask for plain"),
        ("math@r5*0.5", "use max, heuristic, min, r8, r6, r4, searched"),
        ("close*2", "torch.float16 ends at 6.55e+04"),
        ("masked*0.5", "sqft merge"),
        ("big", "--max-lora-rank 12 or more, or ask for big@r8"),
        ("broken", "adapter broken has no adapter_model.safetensors"),
        ("refuses", "adapter refuses: it is an adapter for another base"),
        ("masked", "sqft merge"),
        (
            "nan",
            "adapter nan: tensor base_model.model.model.layers.0.mlp.down_proj.lora_A.weight holds NaN",
        ),
        ("nan@min", "holds NaN or infinity"),
        ("loud", "torch.float16 ends at 6.55e+04"),
        ("dora", "adapter dora cannot be served by vLLM: vLLM does not yet support DoRA"),
        ("biased", "adapter biased cannot be served by vLLM: Adapter bias is not supported"),
        ("norm", "adapter norm cannot be served by vLLM: .*norm.weight is unsupported LoRA weight"),
        ("other", "has rank 4 in its tensors and 8 in adapter_config.json"),
    ],
)
def test_what_cannot_be_served_is_400_with_the_reason(models, root, name, message):
    write_adapter(root / "big", r=16, choices=(16, 12, 8))
    write_adapter(root / "refuses")
    write_adapter(root / "masked", sparse=True)
    write_adapter(root / "broken")
    (root / "broken" / "adapter_model.safetensors").unlink()
    change(write_adapter(root / "nan"), lambda tensors: next(iter(tensors.values())).fill_(float("nan")))
    change(write_adapter(root / "loud"), lambda tensors: next(iter(tensors.values())).fill_(1e5))
    change(write_adapter(root / "close"), lambda tensors: list(tensors.values())[1].fill_(2e4))
    change(write_adapter(root / "dora", choices=None, peft_type="LORA"), use_dora=True)
    change(write_adapter(root / "biased", choices=None, peft_type="LORA"), bias="all")
    norm = {"base_model.model.model.norm.weight": torch.ones(64)}
    change(write_adapter(root / "norm", choices=None, peft_type="LORA"), lambda tensors: tensors.update(norm))
    change(write_adapter(root / "other", r=4, choices=None, peft_type="LORA"), r=8)
    status, text = resolve(models, name)
    assert (status, all(part in text for part in message.split(".*"))) == (400, True), text
    assert name not in models.lora_requests
    assert isinstance(resolve(models, "math"), LoRARequest)


def test_an_adapter_that_is_removed_is_gone_and_its_copy_serves_what_was_admitted(models, root):
    request = resolve(models, "math@r4")
    shutil.rmtree(root / "math")
    assert "math@r4" not in models.lora_requests
    assert resolve(models, "math@r4")[0] == 404
    assert (parse_path(request.lora_path).folder / "adapter_model.safetensors").is_file()


def test_an_adapter_that_is_replaced_gets_another_id_and_path(models, root):
    before = resolve(models, "math@r4")
    write_adapter(root / "math", seed=1)
    after = resolve(models, "math@r4")
    assert after.lora_int_id != before.lora_int_id
    assert after.lora_path != before.lora_path
    assert resolve(models, "math@r4") is after


def test_an_adapter_that_is_gone_is_not_listed_and_its_copy_goes(models, root):
    models._sqft_resolver.copies.linger_seconds = 0.0
    copy = parse_path(resolve(models, "math@r4").lora_path).folder
    assert resolve(models, "plain")
    shutil.rmtree(root / "math")
    cards = asyncio.run(models.show_available_models()).data
    assert [card.id for card in cards] == ["base", "plain"]
    assert cards[1].root == str(root / "plain")  # not its copy
    assert resolve(models, "math@r4")[0] == 404
    assert "math@r4" not in dict.keys(models.lora_requests)
    gc.collect()
    models.engine_client.loaded.clear()
    assert goes(copy)


def test_a_copy_stays_while_a_request_waits_however_long_and_goes_with_it(models, root):
    models._sqft_resolver.copies.linger_seconds = 0.0
    request = resolve(models, "math@r4")
    copy = parse_path(request.lora_path).folder
    write_adapter(root / "math", seed=1)
    assert resolve(models, "math@r4") is not request
    models.engine_client.loaded.clear()
    gc.collect()
    time.sleep(0.5)
    assert (copy / "adapter_model.safetensors").is_file()
    del request
    assert goes(copy)


def test_a_wrong_rank_in_a_path_is_the_clients_error(models, root):
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

    for rank, message in (("r5", "is not served at 'r5'"), ("../x", "is not NAME or NAME@RANK")):
        request = LoadLoRAAdapterRequest(lora_name="mine", lora_path=f"{root / 'math'}?sub={rank}")
        answer = asyncio.run(models.load_lora_adapter(request))
        assert answer.error.code == 400
        assert message in answer.error.message
    request = LoadLoRAAdapterRequest(lora_name="mine", lora_path=f"{root / 'math'}?sub=r4")
    assert "added successfully" in asyncio.run(models.load_lora_adapter(request))


def test_a_strength_is_served_under_an_id_and_a_path_of_its_own_and_is_not_listed(models, root):
    names = ["math", "math*0.5", "math@r4*0.5", "math@r4*0", "plain*-1"]
    requests = [resolve(models, name) for name in names]
    assert [request.lora_name for request in requests] == names
    assert len({request.lora_int_id for request in requests}) == len({request.lora_path for request in requests}) == 5
    variants = [parse_path(request.lora_path) for request in requests]
    assert [(variant.rank, variant.strength) for variant in variants] == [
        (None, 1), (None, 0.5), ("r4", 0.5), ("r4", 0), (None, -1)
    ]  # fmt: skip
    assert resolve(models, "math*0.5") is requests[1]
    assert not [card.id for card in asyncio.run(models.show_available_models()).data if "*" in card.id]


def test_codes_of_a_rank_have_no_strength_but_0_and_1(models, root, monkeypatch):
    write_adapter(root / "qa", sparse=True, quantization_aware=True)
    monkeypatch.setitem(HANDLERS, "quantization-aware", SimpleNamespace(check=lambda *_: None))
    status, message = resolve(models, "qa@r4*0.5")
    assert status == 400
    assert message.startswith(
        "adapter qa is quantization-aware: its codes are the model, and between them and the base's"
    )
    assert [resolve(models, f"qa@r4*{strength}").lora_name for strength in (0, 1)] == ["qa@r4*0", "qa@r4*1"]


def test_a_plane_that_is_being_made_holds_up_no_other_adapter(models, root, monkeypatch):
    write_adapter(root / "qa", sparse=True, quantization_aware=True)
    builds = Builds()
    monkeypatch.setitem(HANDLERS, "quantization-aware", builds)

    async def both():
        slow = asyncio.create_task(models.resolve_lora("qa"))
        await asyncio.to_thread(builds.begun.acquire, timeout=20)
        quick = await asyncio.wait_for(models.resolve_lora("math"), 10)
        builds.done.set()
        return quick, await slow

    assert all(isinstance(answer, LoRARequest) for answer in asyncio.run(both()))


def test_clients_that_hang_up_and_ask_again_have_one_plane_made_at_a_time(models, root, monkeypatch):
    write_adapter(root / "qa", sparse=True, quantization_aware=True)
    builds = Builds()
    monkeypatch.setitem(HANDLERS, "quantization-aware", builds)

    async def impatient():
        for name in ("qa@r8", "qa@r6", "qa@r4"):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(models.resolve_lora(name), 0.2)
        at_once = builds.at_once
        builds.done.set()
        return at_once, await models.resolve_lora("qa@r4")

    at_once, answer = asyncio.run(impatient())
    assert at_once == 1
    assert isinstance(answer, LoRARequest)


class Builds:
    """A handler that makes a plane until `done` is set."""

    def __init__(self):
        self.begun, self.done, self.at_once = threading.Semaphore(0), threading.Event(), 0

    def check(self, *_):
        self.at_once += 1
        self.begun.release()
        assert self.done.wait(20)
        self.at_once -= 1


def test_adapters_that_arrive_while_the_server_runs_are_served(models, root):
    assert resolve(models, "late")[0] == 404
    write_adapter(root / "late")
    assert isinstance(resolve(models, "late@min"), LoRARequest)


def test_one_name_asked_for_at_once_is_loaded_once(models):
    async def many():
        return await asyncio.gather(*(models.resolve_lora("math@r4") for _ in range(8)))

    assert len({id(request) for request in asyncio.run(many())}) == 1
    assert len(models.engine_client.loaded) == 1


def test_a_copy_that_somebody_removed_is_made_again(models):
    folder = parse_path(resolve(models, "math@r4").lora_path).folder
    shutil.rmtree(folder)
    assert parse_path(resolve(models, "math@r4").lora_path).folder == folder
    assert folder.is_dir()


def test_what_vllm_puts_around_the_message_of_a_worker_is_taken_off():
    inner = "adapter 'x' fits another base, please check"
    for message in (
        inner,
        f"Worker failed with error '{inner}', please check the stack trace above for the root cause",
    ):
        assert unwrapped(f"Call to add_lora method failed: {message}") == unwrapped(message) == inner


@pytest.mark.parametrize(("header", "model"), [(None, "math"), ("plain", "plain")])
def test_invocations_are_for_the_model_that_they_name(models, header, model):
    standards = pytest.importorskip("model_hosting_container_standards.sagemaker")
    headers = [(b"x-amzn-sagemaker-adapter-identifier", header.encode())] if header else []
    scope = {"type": "http", "method": "POST", "path": "/invocations", "query_string": b"", "headers": headers}

    async def receive():
        return {"type": "http.request", "body": b'{"model": "math", "prompt": "a"}', "more_body": False}

    @standards.inject_adapter_id(adapter_path="model")
    async def invocations(raw_request: Request):
        return await raw_request.json()

    assert asyncio.run(invocations(Request(scope, receive)))["model"] == model
