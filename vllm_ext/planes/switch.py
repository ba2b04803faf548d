"""In a worker: the value planes (the codes of one rank each) in memory, and which tokens of the
running batch are computed with which.

A quantization-aware variant is a LoRA request like any other to vLLM: its scheduler, its slots and its prefix cache
know it by its id. Its LoRA weights are empty; what it changes are the codes, here. vLLM says before each step which
ids the batch has and which token belongs to which (`WorkerLoRAManager.set_active_adapters`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vllm_ext import metrics
from vllm_ext.planes.cache import ByteBudget, LoadedPlane
from vllm_ext.variables import PLANE_CACHE_BYTES

logger = logging.getLogger("vllm.sqft")


class PlaneSwitch:
    """The planes of one worker process. Called by its one thread only."""

    def __init__(self, budget: int):
        self.cache = ByteBudget(budget, self._evicted)
        self._keys: dict[int, str] = {}  # lora_int_id → key of the cache
        self._worker: Any = None
        self.running: set[int] = set()
        self._gone: set[int] = set()  # ids whose plane was put out; vLLM has to ask for them again before it uses them
        self._groups: list[tuple[Tensor | None, LoadedPlane | None]] = []
        self._tokens = 0
        self._warned = False
        self._refused: dict[str, int] = {}  # keys of planes above the budget → their bytes as far as they were read

    def activate(self, worker: Any, lora_int_id: int, key: str, name: str, load: Callable[..., LoadedPlane]) -> None:
        """Has the plane `key` in memory for the requests with that id. load(grow): reads it, calling `grow` with the
        bytes so far. worker: vLLM's WorkerLoRAManager. Raises SQFTError for a plane above the budget."""
        self._serve(worker)
        listed = worker.list_adapters()
        self._keys = {known: own for known, own in self._keys.items() if known in listed}
        self._gone &= self.running

        if key in self.cache:
            self.cache.get(key)
            metrics.count("plane_cache_hits")
        else:
            if key in self._refused:  # before others are put out for it again
                self.cache.make_room(self._refused[key], name)
            plane = load(lambda size: self._grow(key, size, name))
            self.cache.put(key, plane, name)
            metrics.count("plane_cache_loads")
            logger.info("sqft: plane of %s is loaded, %.1f MiB", name, plane.nbytes / 2**20)

        self._keys[lora_int_id] = key
        self._gone.discard(lora_int_id)
        if lora_int_id in self.running:  # loaded for the batch that comes now: the next one loaded must not push it out
            self.cache.pinned.add(key)
        self._tell_bytes()

    def _grow(self, key: str, size: int, name: str) -> None:
        if size > self.cache.budget:
            self._refused[key] = size
        self.cache.make_room(size, name)

    def before_step(self, worker: Any, ids: set[int]) -> None:
        """The adapters of the next batch: their planes stay, whatever else is loaded for it."""
        self._serve(worker)
        for number in ids - self.running:
            key = self._keys.get(number)
            if key is not None and key in self.cache:
                self.cache.get(key)
                metrics.count("plane_cache_hits")
        self.running = ids
        self.cache.pinned = {self._keys[number] for number in ids if number in self._keys}
        if self.cache.nbytes > self.cache.budget:
            self.cache.make_room(0)
            self._tell_bytes()

    def step(self, mapping: Any) -> None:
        """The running batch. mapping: vLLM's LoRAMapping; `index_mapping`: the adapter id of each token, 0 for none."""
        if mapping is None:  # the one before stays in force
            return
        numbers = mapping.index_mapping
        self._tokens = len(numbers)
        self._groups = group(numbers, lambda number: self._plane(number))
        if self.cache.nbytes > self.cache.budget and not self._warned:
            self._warned = True
            logger.warning(
                "sqft: the planes of one batch need %.1f MiB, above the budget of %.1f MiB: a running batch keeps its "
                "planes; raise %s or lower --max-loras",
                self.cache.nbytes / 2**20, self.cache.budget / 2**20, PLANE_CACHE_BYTES,
            )  # fmt: skip

    def groups(self, layer: nn.Module, tokens: int) -> Sequence[tuple[Tensor | None, Any]] | None:
        """What `vllm_ext.quantization.linear` asks for each layer of a batch of `tokens`: pairs of token indices
        (int64; None for all of them) and the layer's plane (None for the base), which together cover each token once.
        None where the layer has no plane in this batch."""
        if all(plane is None or plane.of(layer) is None for _, plane in self._groups):
            return None
        if tokens < self._tokens:
            raise RuntimeError(
                f"sqft: {type(layer).__name__} sees {tokens} tokens of a batch of {self._tokens}: whose?"
            )
        if tokens > self._tokens:
            self._pad(tokens)
        return [(index, None if plane is None else plane.of(layer)) for index, plane in self._groups]

    def _pad(self, tokens: int) -> None:
        """Tokens behind the batch are padding: they go with the base."""
        rest = torch.arange(self._tokens, tokens)
        whole = [(torch.arange(self._tokens) if index is None else index, plane) for index, plane in self._groups]
        self._groups, self._tokens = [*whole, (rest, None)], tokens

    def _serve(self, worker: Any) -> None:
        if worker is not self._worker:  # another engine in this process: its layers are others
            self.cache.clear()
            self._worker, self._keys, self._gone, self.running = worker, {}, set(), set()

    def _plane(self, number: int) -> LoadedPlane | None:
        if number in self._gone:
            raise RuntimeError(f"sqft: the plane of adapter {number} was put out of memory while it is in use")
        key = self._keys.get(number)
        return None if key is None else self.cache.get(key)

    def _evicted(self, key: str, plane: LoadedPlane) -> None:
        """vLLM must ask for the adapter again, so it has to forget it, too."""
        for number in [known for known, own in self._keys.items() if own == key]:
            del self._keys[number]
            self._gone.add(number)
            self._worker.remove_adapter(number)
        metrics.count("plane_cache_evictions")

    def _tell_bytes(self) -> None:
        metrics.gauge("plane_cache_bytes", self.cache.nbytes)


def group(
    numbers: Sequence[int], plane_of: Callable[[int], LoadedPlane | None]
) -> list[tuple[Tensor | None, LoadedPlane | None]]:
    """numbers: the adapter id of each token → (token indices int64, plane), one for each plane and one for the tokens
    with none; the indices are None where there is one group only. Empty where no token has a plane."""
    own = torch.tensor(numbers, dtype=torch.int64)  # [tokens]
    by_plane: dict[int, tuple[LoadedPlane | None, list[int]]] = {}
    for number in torch.unique(own).tolist():
        plane = plane_of(number)
        by_plane.setdefault(id(plane), (plane, []))[1].append(number)
    if all(plane is None for plane, _ in by_plane.values()):
        return []
    if len(by_plane) == 1:
        return [(None, plane) for plane, _ in by_plane.values()]
    return [
        (torch.isin(own, torch.tensor(members)).nonzero().squeeze(1), plane) for plane, members in by_plane.values()
    ]
