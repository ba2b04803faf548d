"""The names that a server has resolved: few of them, and fresh."""

from __future__ import annotations

import asyncio
import shutil
import time

import pytest
from helpers_adapters import write_adapter

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm_ext.adapters import checks
from vllm_ext.adapters.copies import AdapterCopies
from vllm_ext.adapters.directory import AdapterDirectory
from vllm_ext.adapters.names import Variant
from vllm_ext.adapters.resolver import VariantRequest, VariantTable


def test_the_table_forgets_the_name_not_asked_for_longest(root):
    directory = AdapterDirectory(root)
    table, copies = VariantTable(directory, limit=2, grace_seconds=5.0), AdapterCopies(directory)
    copies.quiet_seconds = 0.0
    now = [0.0]
    table.clock = lambda: now[0]
    table["static"] = "vLLM's own"
    taken = {}
    for name in "abcd":
        write_adapter(root / name)
        taken[name] = copies.take(name)
    time.sleep(0.2)  # until a later writing must show

    def add(name):
        copy, records = taken[name]
        table.add(name, VariantRequest(name, 1, str(Variant(copy.path))), copy, records)

    for name in "abc":
        add(name)
        now[0] += 1
    assert set(table) == {"static", "a", "b", "c"}  # asked for a moment ago: kept beyond the limit
    now[0] += 10
    assert "a" in table  # asked for again
    add("d")
    assert set(table) == {"static", "a", "d"}
    shutil.rmtree(root / "a")
    now[0] += 1
    add("d")
    assert set(table) == {"static", "a", "d"}  # gone, perhaps for a moment
    now[0] += 10
    add("d")
    assert set(table) == {"static", "d"}
    del table["d"]
    assert set(table) == {"static"}


def test_adapters_are_opened_off_the_event_loop(models, root, monkeypatch):
    """A disk that takes its time holds up nobody but who asked."""
    longest, slow = [0.0], AdapterDirectory.open

    def takes_its_time(*arguments):
        time.sleep(0.5)
        return slow(*arguments)

    async def watched():
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            last, before = time.monotonic(), last
            longest[0] = max(longest[0], last - before)

    async def asked():
        watch = asyncio.create_task(watched())
        answer = await models.resolve_lora("math@r4")
        cards = await models.show_available_models()
        watch.cancel()
        return answer, cards

    monkeypatch.setattr(AdapterDirectory, "open", takes_its_time)
    monkeypatch.setattr(checks, "largest_values", lambda weights: time.sleep(0.5) or {})
    answer, _ = asyncio.run(asked())
    assert isinstance(answer, VariantRequest)
    assert longest[0] < 0.4
