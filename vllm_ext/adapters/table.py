"""The names that vLLM's API server has resolved, kept fresh and few.

vLLM itself keeps each resolved name for ever, and its lock too, also of names that do not exist.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from vllm_ext.adapters.directory import AdapterDirectory
from vllm_ext.adapters.folder import WEIGHTS, Signature
from vllm_ext.adapters.names import parse_name
from vllm_ext.adapters.path import parse_path

LIMIT = 256
"""Resolved variants that are kept. Weights are not counted here: the workers keep --max-cpu-loras of them."""
GRACE_SECONDS = 60.0
"""A name that was asked for so recently is not forgotten: its request may be between two looks at the table."""


class VariantTable(dict[str, Any]):
    """Name → LoRARequest, in vLLM's place for it (`OpenAIServingModels.lora_requests`).

    A variant of ours is forgotten when its folder has changed or is gone, so that the next request resolves it anew
    (under a new id and path, so cached prefixes of the old weights are not used), and when it is the one not asked for
    longest of more than `limit`. Other entries (--lora-modules, /v1/load_lora_adapter) stay as they are.
    """

    def __init__(self, directory: AdapterDirectory, limit: int = LIMIT, grace_seconds: float = GRACE_SECONDS):
        super().__init__()
        self.directory = directory
        self.limit = limit
        self.grace_seconds = grace_seconds
        self.clock: Callable[[], float] = time.monotonic
        self._signatures: dict[str, Signature | None] = {}
        self._asked: dict[str, float] = {}  # of ours, the one not asked for longest first

    def add(self, name: str, request: Any, signature: Signature | None) -> None:
        """A variant of ours. signature: of its folder before it was read."""
        self[name] = request
        self._signatures[name] = signature
        self._touch(name)
        for other in list(self._asked):
            recent = self.clock() - self._asked[other] < self.grace_seconds
            if len(self._asked) <= self.limit or recent:
                break
            self.pop(other)

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name) or not isinstance(name, str):
            return False
        if self.is_ours(name):
            if not self._is_fresh(name):
                self.pop(name)
                return False
            self._touch(name)
        return True

    def is_ours(self, name: str) -> bool:
        return name in self._asked

    def pop(self, name: str, *default: Any) -> Any:
        self._asked.pop(name, None)
        self._signatures.pop(name, None)
        return super().pop(name, *default)

    def __delitem__(self, name: str) -> None:
        self.pop(name)

    def folders(self) -> set[Path]:
        """The copies that are needed. Variants whose folder has changed or is gone are forgotten."""
        for name in [name for name in self._asked if not self._is_fresh(name)]:
            self.pop(name)
        variants = (parse_path(self[name].lora_path) for name in self._asked)
        return {variant.folder for variant in variants if variant is not None}

    def _is_fresh(self, name: str) -> bool:
        variant = parse_path(self[name].lora_path)
        same = self.directory.signature(parse_name(name).adapter) == self._signatures[name]
        return same and variant is not None and (variant.folder / WEIGHTS).exists()  # somebody may have tidied /tmp

    def _touch(self, name: str) -> None:
        self._asked.pop(name, None)
        self._asked[name] = self.clock()


class Locks(WeakValueDictionary[str, asyncio.Lock]):
    """A lock a name, for as long as somebody holds or awaits it."""

    def __getitem__(self, name: str) -> asyncio.Lock:
        lock = self.get(name)
        if lock is None:
            lock = asyncio.Lock()
            self[name] = lock
        return lock
