"""An adapter that is replaced while a server runs: each request is answered, whole, by one version."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time

import pytest
from helpers_adapters import write_adapter

pytest.importorskip("vllm", reason="vLLM is not installed")

from helpers_serving import resolve
from vllm.lora.request import LoRARequest

from vllm_ext.adapters.names import parse_path


def test_whom_a_version_was_given_to_has_it_for_the_whole_of_his_request(models, root):
    """vLLM asks whether a name is there, and once more for what stands behind it."""

    async def replaced_meanwhile():
        request = await models.resolve_lora("math@r4")
        write_adapter(root / "math", seed=1)
        assert "math@r4" in models.lora_requests
        return request, models.lora_requests["math@r4"]

    request, again = asyncio.run(replaced_meanwhile())
    assert again is request
    assert "math@r4" not in models.lora_requests  # to the next one
    assert resolve(models, "math@r4") is not request


BREAKS = {
    "cut off": lambda folder: _cut(folder / "adapter_model.safetensors"),
    "without weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "no configuration": lambda folder: (folder / "adapter_config.json").unlink(),
    "damaged configuration": lambda folder: (folder / "adapter_config.json").write_text("{"),
    "too large a rank": lambda folder: write_adapter(folder, r=64, choices=(64, 4)),
    "no LoRA": lambda folder: write_adapter(folder, sparse=True),
    "refused by the worker": lambda folder: write_adapter(folder, seed=9, lora_alpha=666),
}


def _cut(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("broken", BREAKS)
def test_after_a_broken_replacement_the_version_before_answers_on_and_the_log_says_so(
    models, root, broken, monkeypatch, caplog
):
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    add_lora = models.engine_client.add_lora

    async def refuses(request):
        if b"666" in (parse_path(request.lora_path).folder / "adapter_config.json").read_bytes():
            raise Exception("Call to add_lora method failed: not finite")
        return await add_lora(request)

    models.engine_client.add_lora = refuses
    models._sqft_resolver.copies.patience_seconds = 0.2
    before = resolve(models, "math@max")
    names = [card.id for card in asyncio.run(models.show_available_models()).data]
    BREAKS[broken](root / "math")
    _age(root / "math")
    with caplog.at_level(logging.WARNING):
        assert resolve(models, "math@max") is before
    assert "the version before answers on" in caplog.text
    other = resolve(models, "math@r4")  # one that was not asked for before
    assert parse_path(other.lora_path).folder == parse_path(before.lora_path).folder
    listed = [card.id for card in asyncio.run(models.show_available_models()).data]
    assert set(names) >= set(listed)
    assert any(name.startswith("math") for name in listed)
    shutil.rmtree(root / "math")
    write_adapter(root / "math", seed=1)
    assert resolve(models, "math@max") is not before  # mended


def test_a_broken_version_is_tried_once_not_at_every_request(models, root, monkeypatch):
    resolve(models, "math@r4")
    _cut(root / "math" / "adapter_model.safetensors")
    _age(root / "math")
    resolve(models, "math@r4")
    monkeypatch.setattr(models._sqft_resolver.copies, "take", None)
    assert isinstance(resolve(models, "math@r4"), LoRARequest)
    assert isinstance(resolve(models, "math@min"), LoRARequest)


def _age(folder):
    """Until a later writing must show: see sqft_plugins.identity."""
    time.sleep(0.2)


def test_a_version_without_a_rank_answers_for_itself(models, root):
    resolve(models, "math@r4")
    write_adapter(root / "math", choices=(8, 6), seed=1)
    assert resolve(models, "math@r4")[0] == 400
    assert isinstance(resolve(models, "math@r6"), LoRARequest)


SWAPS = ("rename", "link", "files", "anew")


@pytest.mark.parametrize("how", SWAPS)
def test_replacing_an_adapter_all_the_time_is_never_seen(models, root, tmp_path, how):
    models._sqft_resolver.copies.patience_seconds = 0.5
    for number in (0, 1):
        write_adapter(root / f"v{number}", seed=number)
    contents = {(root / f"v{number}" / "adapter_model.safetensors").read_bytes() for number in (0, 1)}
    stop = threading.Event()

    def swap(number):
        source = root / f"v{number % 2}"
        if how == "rename":
            shutil.copytree(source, tmp_path / "next")
            (root / "math").rename(tmp_path / "old")
            (tmp_path / "next").rename(root / "math")
            shutil.rmtree(tmp_path / "old")
        elif how == "link":
            (root / "math").unlink() if (root / "math").is_symlink() else shutil.rmtree(root / "math")
            (root / "math").symlink_to(source)
        else:
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copy(source / name, root / f"math.{name}")
                (root / f"math.{name}").rename(root / "math" / name)

    def swaps():
        number = 0
        while not stop.wait(0.01):
            swap(number)
            number += 1

    assert isinstance(resolve(models, "math"), LoRARequest)
    first = (parse_path(resolve(models, "math").lora_path).folder / "adapter_model.safetensors").read_bytes()
    writer = threading.Thread(target=swaps)
    writer.start()
    try:
        for number in range(40):
            answer = resolve(models, ("math", "math@max", "math@r4")[number % 3])
            assert isinstance(answer, LoRARequest), answer
            weights = parse_path(answer.lora_path).folder / "adapter_model.safetensors"
            assert weights.read_bytes() in contents | {first}
            assert any(card.id == "math" for card in asyncio.run(models.show_available_models()).data)
    finally:
        stop.set()
        writer.join()
    swap(1)
    time.sleep(0.6)
    weights = parse_path(resolve(models, "math").lora_path).folder / "adapter_model.safetensors"
    assert weights.read_bytes() == (root / "v1" / "adapter_model.safetensors").read_bytes()


def test_two_versions_of_one_name_are_two_adapters_in_a_batch(models, root):
    before = resolve(models, "math@r4")
    write_adapter(root / "math", seed=1)
    after = resolve(models, "math@r4")
    assert before.lora_name == after.lora_name
    assert len({before, after}) == 2
    engines = [LoRARequest("a", 1, "/x"), LoRARequest("a", 2, "/y"), LoRARequest("a", 2, "/y")]
    assert len(set(engines)) == 2
