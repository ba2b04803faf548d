"""Planes in memory: the budget, and which tokens get which plane. No vLLM needed."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sqft_plugins.errors import SQFTError
from vllm_ext.planes.cache import ByteBudget, LoadedPlane
from vllm_ext.planes.switch import PlaneSwitch, group
from vllm_ext.variables import plane_bytes


@dataclass
class Block:
    nbytes: int


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 5)), max_size=40), st.integers(5, 12))
def test_the_budget_holds_and_the_least_recently_used_goes_first(uses, budget) -> None:
    gone = []
    cache, naive = ByteBudget(budget, lambda key, item: gone.append(key)), OrderedDict()
    for number, size in uses:
        key = str(number)
        before = list(naive)
        if key in naive:
            naive.move_to_end(key)
            cache.get(key)
        else:
            while sum(naive.values()) + size > budget:
                naive.popitem(last=False)
            naive[key] = size
            cache.put(key, Block(size))
        assert list(cache) == list(naive)
        assert cache.nbytes == sum(naive.values()) <= budget
        assert [k for k in before if k not in naive] == gone
        gone.clear()


def test_what_is_pinned_stays_even_above_the_budget() -> None:
    gone = []
    cache = ByteBudget(10, lambda key, item: gone.append(key))
    for key in "abc":
        cache.put(key, Block(3))
    cache.pinned = {"a", "b"}
    cache.put("d", Block(4))
    assert (gone, list(cache)) == (["c"], ["a", "b", "d"])
    cache.put("e", Block(4))
    assert (gone, list(cache), cache.nbytes) == (["c", "d"], ["a", "b", "e"], 10)
    cache.pinned |= {"e"}
    cache.put("f", Block(4))
    assert (list(cache), cache.nbytes) == (["a", "b", "e", "f"], 14)
    cache.pinned = set()
    cache.make_room(0)
    assert (list(cache), cache.nbytes) == (["b", "e", "f"][1:], 8)


def test_one_plane_above_the_budget_is_refused_with_the_remedy() -> None:
    cache = ByteBudget(1 << 20)
    cache.put("a", Block(1 << 19))
    with pytest.raises(SQFTError, match=r"math@r16 needs 2.0 MiB or more, .* 1.0 MiB: raise --plane-cache-bytes"):
        cache.make_room(2 << 20, "math@r16")
    assert list(cache) == ["a"]  # nothing was put out for it


def test_a_budget_that_is_no_number_is_an_error(monkeypatch) -> None:
    assert plane_bytes() == 1 << 30
    monkeypatch.setenv("SQFT_PLANE_CACHE_BYTES", "12345")
    assert plane_bytes() == 12345
    monkeypatch.setenv("SQFT_PLANE_CACHE_BYTES", "1GB")
    with pytest.raises(SQFTError, match="SQFT_PLANE_CACHE_BYTES=1GB is no number"):
        plane_bytes()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_each_token_is_in_the_group_of_its_plane_once(numbers) -> None:
    shared = LoadedPlane()
    planes = {1: shared, 2: LoadedPlane(), 3: shared}  # 1 and 3: two names of one plane; 0 and 4: none
    groups = group(numbers, planes.get)
    if not {1, 2, 3} & set(numbers):
        assert groups == []
        return
    found = [None] * len(numbers)
    for index, plane in groups:
        for token in range(len(numbers)) if index is None else index.tolist():
            assert found[token] is None
            found[token] = (plane,)
    assert found == [(planes.get(number),) for number in numbers]
    assert len(groups) == len({id(planes.get(number)) for number in numbers})


class Worker:
    """As much of vLLM's WorkerLoRAManager as the switch asks: which adapters it has, and to forget one."""

    def __init__(self):
        self.listed: set[int] = set()

    def list_adapters(self):
        return self.listed

    def remove_adapter(self, number):
        self.listed.discard(number)


class Mapping:
    def __init__(self, *numbers):
        self.index_mapping = numbers


LAYER = torch.nn.Linear(1, 1)


def loader(size: int, loads: list):
    def load(grow):
        loads.append(size)
        grow(size)
        plane = LoadedPlane(nbytes=size)
        plane.layers[LAYER] = f"codes of {size} bytes"
        return plane

    return load


def test_a_plane_that_is_put_out_is_forgotten_by_vllm_and_loaded_again() -> None:
    switch, worker, loads = PlaneSwitch(10), Worker(), []

    def ask(number, size=6):
        if number not in worker.listed:  # as WorkerLoRAManager.add_adapter
            switch.activate(worker, number, f"plane-{number}", f"math@r{number}", loader(size, loads))
            worker.listed.add(number)

    ask(1)
    ask(2)
    assert (worker.listed, loads) == ({2}, [6, 6])
    for number in (1, 2, 1):
        switch.before_step(worker, {number})
        ask(number)
        switch.step(Mapping(number, 0))
        assert [index.tolist() for index, _ in switch.groups(LAYER, 2)] == [[1], [0]]
        assert worker.listed == {number}
    assert len(loads) == 5


def test_a_plane_that_was_refused_once_puts_no_other_out() -> None:
    switch, worker = PlaneSwitch(10), Worker()

    def large(grow):
        for size in (4, 8, 12):  # layer by layer
            grow(size)

    for _ in range(2):
        with pytest.raises(SQFTError, match="large needs"):
            switch.activate(worker, 1, "large", "large", large)
        assert len(list(switch.cache)) in (0, 1)
        switch.activate(worker, 2, "small", "small", loader(6, []))
    with pytest.raises(SQFTError, match="large needs"):
        switch.activate(worker, 1, "large", "large", large)
    assert list(switch.cache) == ["small"]


def test_a_batch_keeps_all_its_planes_and_gives_the_room_back() -> None:
    switch, worker = PlaneSwitch(10), Worker()
    switch.before_step(worker, set())
    for step in ({1, 2, 3}, {1}):
        switch.before_step(worker, step)
        for number in step - worker.listed:
            switch.activate(worker, number, str(number), "name", loader(6, []))
            worker.listed.add(number)
        switch.step(Mapping(*sorted(step)))
    # the second batch began with 18 bytes and kept only its own plane
    assert (switch.cache.nbytes, worker.listed) == (6, {1})


def test_a_layer_that_sees_other_tokens_than_the_batch_is_an_error_and_padding_is_the_bases() -> None:
    switch, worker = PlaneSwitch(10), Worker()
    switch.activate(worker, 1, "key", "math", loader(1, []))
    switch.step(Mapping(1, 1, 1))
    assert [index for index, _ in switch.groups(LAYER, 3)] == [None]
    with pytest.raises(RuntimeError, match="sees 2 tokens of a batch of 3"):
        switch.groups(LAYER, 2)
    assert [index.tolist() for index, _ in switch.groups(LAYER, 5)] == [[0, 1, 2], [3, 4]]
    assert switch.groups(torch.nn.Linear(1, 1), 2) is None  # of a layer that the adapter leaves alone
    switch.step(Mapping(0, 0))
    assert switch.groups(LAYER, 2) is None
