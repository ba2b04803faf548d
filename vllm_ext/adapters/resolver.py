"""From the name in a request to a variant: vLLM's LoRAResolver, bound to one directory, and the names it has resolved.

vLLM asks its resolvers for every model name it does not know, if VLLM_ALLOW_RUNTIME_LORA_UPDATING is set. It keeps each
resolved name for ever, and its lock too, also of names that do not exist; here they are kept fresh and few.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.copies import AdapterCopies, Copy, hold
from vllm_ext.adapters.directory import AdapterDirectory
from vllm_ext.adapters.folder import Records
from vllm_ext.adapters.kinds import handler
from vllm_ext.adapters.names import Variant, parse_name, parse_path, shown
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
    """Serves `NAME` and `NAME@RANK` from `directory`. Every request gets the path of a private copy (copies.py)."""

    def __init__(self, directory: AdapterDirectory):
        self.directory = directory
        self.copies = AdapterCopies(directory)
        self._kinds: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reading = Locks()
        self._jobs: set[asyncio.Task[Any]] = set()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """None where the name is not ours, or cannot be served; the log says why. vLLM answers 404."""
        try:
            copy, _ = await self.newest(parse_name(lora_name).adapter)
            return await self.resolve(copy, base_model_name, lora_name)
        except SQFTError as error:
            logger.warning("sqft: %s not served: %s", shown(lora_name), error)
            return None

    async def newest(self, adapter: str, served: bool = False) -> tuple[Copy, Records]:
        """As `AdapterCopies.take`. One request waits for an adapter that is being written, the others for him."""

        async def take() -> tuple[Copy, Records]:
            async with self._reading[adapter]:
                return await asyncio.to_thread(self.copies.take, adapter, served)

        return await self._to_its_end(take())

    async def resolve(self, copy: Copy, base_model_name: str, lora_name: str, settings: Any = None) -> LoRARequest:
        """The request for a variant of that version. Raises SQFTError with the reason. settings: vllm's VllmConfig. The
        id is vLLM's to give."""
        name, base = parse_name(lora_name), Path(base_model_name)
        check = handler(copy.folder).check

        async def checked() -> None:
            async with self._kinds[copy.folder.kind]:  # one at a time: a plane may take minutes and much memory
                await asyncio.to_thread(check, copy.folder, name.rank, base if base.is_dir() else None, settings)

        await self._to_its_end(checked())
        path = str(Variant(copy.folder.path, name.rank))
        request = VariantRequest(lora_name=str(name), lora_int_id=1, lora_path=path)
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


def register_resolver() -> AdapterResolver:
    """Registers the resolver for SQFT_ADAPTERS_DIR; the one that is there already is kept. Raises SQFTError where the
    variable names no folder."""
    known = LoRAResolverRegistry.resolvers.get(NAME)
    if isinstance(known, AdapterResolver):
        return known
    resolver = AdapterResolver(AdapterDirectory(os.environ[ADAPTERS_DIR]))
    LoRAResolverRegistry.register_resolver(NAME, resolver)
    return resolver


class VariantTable(dict[str, Any]):
    """Name → LoRARequest, in vLLM's place for it (`OpenAIServingModels.lora_requests`).

    A variant of ours is in the table, to those who ask, while its folder is as it was; then the next request resolves
    it anew (under a new id and path, so cached prefixes of the old weights are not used). Whom it was once given to has
    it for the whole of his request: vLLM asks twice. It stays in memory until a newer version is served, until its
    adapter is gone, or until it is the one not asked for longest of more than `limit`. Other entries (--lora-modules,
    /v1/load_lora_adapter) stay as they are.
    """

    def __init__(
        self,
        directory: AdapterDirectory,
        copies: AdapterCopies,
        limit: int = LIMIT,
        grace_seconds: float = GRACE_SECONDS,
    ):
        super().__init__()
        self.directory = directory
        self.copies = copies
        self.limit = limit
        self.grace_seconds = grace_seconds
        self.clock: Callable[[], float] = time.monotonic
        self._records: dict[str, Records | None] = {}
        self._refused: dict[str, Records | None] = {}  # adapter → its folder, as it cannot be served
        self._asked: dict[str, float] = {}  # of ours, the one not asked for longest first
        self._gone: dict[str, float] = {}  # adapter → when it was first seen to be gone
        self._given: WeakKeyDictionary[asyncio.Task[Any], dict[str, Any]] = WeakKeyDictionary()

    def add(self, name: str, request: Any, records: Records | None) -> None:
        """A variant of ours. records: of its folder before it was read, None where a later writing may not show."""
        self[name] = request
        self._records[name] = records
        self._touch(name)
        self._give(name, request)
        adapter, path = parse_name(name).adapter, self._path(name)
        for other in [other for other in self._asked if parse_name(other).adapter == adapter]:
            if self._path(other) != path:  # another version
                self.pop(other)
        if records is not None:
            self._refused.pop(adapter, None)
        self._forget()

    def refuse(self, adapter: str, records: Records | None) -> None:
        """The folder as it is cannot be served: what was served before stays in the table while it is so. records: as
        in `add`."""
        self._refused[adapter] = records

    def is_refused(self, adapter: str) -> bool:
        """Whether the folder is as it was when it could not be served."""
        known = self._refused.get(adapter)
        return known is not None and known == self.directory.records(adapter)

    def served(self, adapter: str) -> Copy | None:
        """The version of an adapter that is served, None where there is none."""
        for name in reversed(self._asked):
            copy = self.copy_of(name) if parse_name(name).adapter == adapter else None
            if copy is not None:
                return copy
        return None

    def adapters(self) -> dict[str, Copy]:
        """Those of which a version is served."""
        names = dict.fromkeys(parse_name(name).adapter for name in self._asked)
        return {name: copy for name in names if (copy := self.served(name)) is not None}

    def remove(self, adapter: str) -> None:
        """All variants of an adapter."""
        for name in [name for name in self._asked if parse_name(name).adapter == adapter]:
            self.pop(name)
        self._refused.pop(adapter, None)
        self._gone.pop(adapter, None)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if name in self._given_here():
            return True
        if not super().__contains__(name):
            return False
        if self.is_ours(name):
            if not self._is_fresh(name):
                return False
            self._touch(name)
            self._give(name, super().__getitem__(name))
        return True

    def __getitem__(self, name: str) -> Any:
        given = self._given_here()
        return given[name] if name in given else super().__getitem__(name)

    def known(self, name: str) -> Any:
        """The request of ours for a name, of whatever version; None where there is none."""
        return super().__getitem__(name) if self.is_ours(name) else None

    def copy_of(self, name: str) -> Copy | None:
        """The copy behind one of our names, None where it is not whole."""
        return self.copies.of(self._path(name))

    def is_ours(self, name: str) -> bool:
        return name in self._asked

    def pop(self, name: str, *default: Any) -> Any:
        self._asked.pop(name, None)
        self._records.pop(name, None)
        return super().pop(name, *default)

    def __delitem__(self, name: str) -> None:
        self.pop(name)

    def _given_here(self) -> dict[str, Any]:
        """What the running request has been given."""
        return self._given.get(task, {}) if (task := _task()) is not None else {}

    def _give(self, name: str, request: Any) -> None:
        if (task := _task()) is not None:
            self._given.setdefault(task, {})[name] = request

    def _is_fresh(self, name: str) -> bool:
        adapter = parse_name(name).adapter
        known = self._records[name]
        same = known is not None and known == self.directory.records(adapter)
        return (same or self.is_refused(adapter)) and self.copy_of(name) is not None  # somebody may have tidied /tmp

    def _path(self, name: str) -> Path:
        variant = parse_path(super().__getitem__(name).lora_path)
        assert variant is not None
        return variant.folder

    def _forget(self) -> None:
        for name in list(self._asked):
            if len(self._asked) <= self.limit or self.clock() - self._asked[name] < self.grace_seconds:
                break
            self.pop(name)
        for adapter in dict.fromkeys(parse_name(name).adapter for name in self._asked):
            if self.directory.records(adapter) is not None:
                self._gone.pop(adapter, None)
            elif self.clock() - self._gone.setdefault(adapter, self.clock()) >= self.grace_seconds:
                self.remove(adapter)

    def _touch(self, name: str) -> None:
        self._asked.pop(name, None)
        self._asked[name] = self.clock()


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
