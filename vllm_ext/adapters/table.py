"""The names that vLLM's API server has resolved, kept fresh and few.

vLLM itself keeps each resolved name for ever, and its lock too, also of names that do not exist.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from vllm_ext.adapters.copies import AdapterCopies, Copy
from vllm_ext.adapters.directory import AdapterDirectory
from vllm_ext.adapters.folder import Records
from vllm_ext.adapters.names import parse_name
from vllm_ext.adapters.path import parse_path

LIMIT = 256
"""Resolved variants that are kept. Weights are not counted here: the workers keep --max-cpu-loras of them."""
GRACE_SECONDS = 60.0
"""A name that was asked for so recently is not forgotten, and an adapter that is gone so recently neither."""


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
