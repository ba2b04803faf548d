"""From the name in a request to a variant: vLLM's LoRAResolver, bound to one directory, and the names it has resolved.

vLLM asks its resolvers for every model name it does not know, if VLLM_ALLOW_RUNTIME_LORA_UPDATING is set. It keeps each
resolved name for ever, and its lock too, also of names that do not exist; here they are kept fresh and few.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.copies import AdapterCopies, hold
from vllm_ext.adapters.directory import AdapterDirectory
from vllm_ext.adapters.folder import Records, ServedAdapter
from vllm_ext.adapters.kinds import check
from vllm_ext.adapters.names import Variant, parse_name, shown
from vllm_ext.variables import ADAPTERS_DIR

NAME = "SQFT adapters"
LIMIT = 256
"""Resolved variants that are kept. Weights are not counted here: the workers keep --max-cpu-loras of them."""
GRACE_SECONDS = 60.0
"""A name that was asked for so recently is not forgotten, and an adapter that is gone so recently neither."""
T = TypeVar("T")
logger = logging.getLogger("vllm.sqft")


class VariantRequest(LoRARequest, weakref=True):
    """vLLM's LoRARequest, of which this process knows when nobody has it any more (copies.py)."""


class AdapterResolver(LoRAResolver):
    """Serves `NAME` and `NAME@RANK`, at any strength, from `directory`. Every request gets the path of a private copy
    (copies.py)."""

    def __init__(self, directory: AdapterDirectory):
        self.directory = directory
        self.copies = AdapterCopies(directory)
        self._kinds, self._reading = Locks(), Locks()
        self._jobs: set[asyncio.Task[Any]] = set()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """None where the name is not ours, or cannot be served; the log says why. vLLM answers 404."""
        try:
            copy, _ = await self.newest(parse_name(lora_name).adapter)
            return await self.resolve(copy, base_model_name, lora_name)
        except SQFTError as error:
            logger.warning("sqft: %s not served: %s", shown(lora_name), error)
            return None

    async def newest(self, adapter: str, served: bool = False) -> tuple[ServedAdapter, Records]:
        """As `AdapterCopies.take`. One request waits for an adapter that is being written, the others for him."""

        async def take() -> tuple[ServedAdapter, Records]:
            async with self._reading[adapter]:
                return await asyncio.to_thread(self.copies.take, adapter, served)

        return await self._to_its_end(take())

    async def resolve(
        self, copy: ServedAdapter, base_model_name: str, lora_name: str, settings: Any = None
    ) -> LoRARequest:
        """The request for a variant of that version. Raises SQFTError with the reason. settings: vllm's VllmConfig. The
        id is vLLM's to give."""
        name, base = parse_name(lora_name), Path(base_model_name)

        async def checked() -> None:
            async with self._kinds[copy.kind]:  # one at a time: a plane may take minutes and much memory
                await asyncio.to_thread(check, copy, name, base if base.is_dir() else None, settings)

        await self._to_its_end(checked())
        path = str(Variant(copy.path, name.rank, strength=name.strength))
        request = VariantRequest(lora_name=lora_name, lora_int_id=1, lora_path=path)
        hold(request, copy)
        return request

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """vLLM cancels us when the client hangs up; the turn of this work is not over by that."""
        job = asyncio.create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._ended)
        return await asyncio.shield(job)

    def _ended(self, job: asyncio.Task[Any]) -> None:
        self._jobs.discard(job)
        if not job.cancelled():
            job.exception()  # seen: where the client has hung up, nobody else asks for it


def register_resolver() -> None:
    """Registers the resolver for SQFT_ADAPTERS_DIR; the one that is there already is kept. Raises SQFTError where the
    variable names no folder."""
    if NAME not in LoRAResolverRegistry.resolvers:
        LoRAResolverRegistry.register_resolver(NAME, AdapterResolver(AdapterDirectory(os.environ[ADAPTERS_DIR])))


@dataclass
class Entry:
    """A name of ours. copy: the version behind it. records: of its folder before it was read, None where a later
    writing may not show. asked: when it was last asked for."""

    copy: ServedAdapter
    records: Records | None
    asked: float = 0.0


class VariantTable(dict[str, Any]):
    """Name → LoRARequest, in vLLM's place for it (`OpenAIServingModels.lora_requests`).

    A variant of ours is in the table, to those who ask, while its folder is as it was; then the next request resolves
    it anew (under a new id and path, so cached prefixes of the old weights are not used). Whom it was once given to has
    it for the whole of his request: vLLM asks twice. It stays in memory until a newer version is served, until its
    adapter is gone, or until it is the one not asked for longest of more than `limit`. Other entries (--lora-modules,
    /v1/load_lora_adapter) stay as they are.
    """

    def __init__(self, directory: AdapterDirectory, limit: int = LIMIT, grace_seconds: float = GRACE_SECONDS):
        super().__init__()
        self.directory = directory
        self.limit = limit
        self.grace_seconds = grace_seconds
        self.clock: Callable[[], float] = time.monotonic
        self._ours: dict[str, Entry] = {}  # the one not asked for longest first
        self._refused: dict[str, Records | None] = {}  # adapter → its folder, as it cannot be served
        self._gone: dict[str, float] = {}  # adapter → when it was first seen to be gone
        self._given: WeakKeyDictionary[asyncio.Task[Any], dict[str, Any]] = WeakKeyDictionary()

    def add(self, name: str, request: Any, copy: ServedAdapter, records: Records | None) -> None:
        """A variant of ours, in that version. records: as in `Entry`."""
        adapter = parse_name(name).adapter
        for other in self._names(adapter):
            if self._ours[other].copy is not copy:  # another version
                self.pop(other)
        self[name], self._ours[name] = request, Entry(copy, records)
        self._touch(name)
        if records is not None:
            self._refused.pop(adapter, None)
        self._forget()

    def refuse(self, adapter: str, records: Records | None) -> None:
        """The folder as it is cannot be served: what was served before stays in the table while it is so. records: as
        in `Entry`."""
        self._refused[adapter] = records

    def is_refused(self, adapter: str) -> bool:
        """Whether the folder is as it was when it could not be served."""
        known = self._refused.get(adapter)
        return known is not None and known == self.directory.records(adapter)

    def served(self, adapter: str) -> ServedAdapter | None:
        """The version of an adapter that is served, None where there is none."""
        copies = (self._ours[name].copy for name in reversed(self._names(adapter)))
        return next((copy for copy in copies if copy.is_whole), None)

    def adapters(self) -> dict[str, ServedAdapter]:
        """Those of which a version is served."""
        return {adapter: copy for adapter in self._adapters() if (copy := self.served(adapter)) is not None}

    def remove(self, adapter: str) -> None:
        """All variants of an adapter."""
        for name in self._names(adapter):
            self.pop(name)
        self._refused.pop(adapter, None)
        self._gone.pop(adapter, None)

    def __contains__(self, name: object) -> bool:
        if name in self._given_here():
            return True
        if not super().__contains__(name):
            return False
        if isinstance(name, str) and self.is_ours(name):
            if not self._is_fresh(name):
                return False
            self._touch(name)
        return True

    def __getitem__(self, name: str) -> Any:
        given = self._given_here()
        return given[name] if name in given else super().__getitem__(name)

    def known(self, name: str, copy: ServedAdapter) -> Any:
        """The request of ours for a name in that version, None where there is none."""
        return super().__getitem__(name) if self.is_ours(name) and self._ours[name].copy is copy else None

    def is_ours(self, name: str) -> bool:
        return name in self._ours

    def pop(self, name: str, *default: Any) -> Any:
        self._ours.pop(name, None)
        return super().pop(name, *default)

    def __delitem__(self, name: str) -> None:
        self.pop(name)

    def _names(self, adapter: str) -> list[str]:
        """Our names of an adapter, the one not asked for longest first."""
        return [name for name in self._ours if parse_name(name).adapter == adapter]

    def _adapters(self) -> list[str]:
        return list(dict.fromkeys(parse_name(name).adapter for name in self._ours))

    def _given_here(self) -> dict[str, Any]:
        """What the running request has been given."""
        return self._given.get(task, {}) if (task := _task()) is not None else {}

    def _touch(self, name: str) -> None:
        """The name is asked for now, and its request given to the task that runs."""
        entry = self._ours[name] = self._ours.pop(name)
        entry.asked = self.clock()
        if (task := _task()) is not None:
            self._given.setdefault(task, {})[name] = super().__getitem__(name)

    def _is_fresh(self, name: str) -> bool:
        adapter, entry = parse_name(name).adapter, self._ours[name]
        same = entry.records is not None and entry.records == self.directory.records(adapter)
        return (same or self.is_refused(adapter)) and entry.copy.is_whole  # somebody may have tidied /tmp

    def _forget(self) -> None:
        for name, entry in list(self._ours.items()):
            if len(self._ours) <= self.limit or self.clock() - entry.asked < self.grace_seconds:
                break
            self.pop(name)
        for adapter in self._adapters():
            if self.directory.records(adapter) is not None:
                self._gone.pop(adapter, None)
            elif self.clock() - self._gone.setdefault(adapter, self.clock()) >= self.grace_seconds:
                self.remove(adapter)


def _task() -> asyncio.Task[Any] | None:
    """vLLM handles each request in a task of its own."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class Locks(WeakValueDictionary[str, asyncio.Lock]):
    """A lock a name, for as long as somebody holds or awaits it."""

    def __getitem__(self, name: str) -> asyncio.Lock:
        lock = self.get(name)
        if lock is None:
            lock = asyncio.Lock()
            self[name] = lock
        return lock
