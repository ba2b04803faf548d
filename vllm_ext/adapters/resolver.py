"""From the name in a request to a variant: vLLM's LoRAResolver, bound to one directory.

vLLM asks its resolvers for every model name it does not know, if VLLM_ALLOW_RUNTIME_LORA_UPDATING is set.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.copies import AdapterCopies, Copy, hold
from vllm_ext.adapters.directory import AdapterDirectory, directory_from_environment
from vllm_ext.adapters.folder import Records
from vllm_ext.adapters.kinds import handler
from vllm_ext.adapters.names import parse_name, shown
from vllm_ext.adapters.path import Variant
from vllm_ext.adapters.table import Locks

NAME = "SQFT adapters"
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


def register_resolver() -> AdapterResolver | None:
    """Registers the resolver where SQFT_ADAPTERS_DIR is set; the one that is there already is kept. Raises SQFTError
    where the variable names no folder."""
    known = LoRAResolverRegistry.resolvers.get(NAME)
    if isinstance(known, AdapterResolver):
        return known
    directory = directory_from_environment()
    if directory is None:
        return None
    resolver = AdapterResolver(directory)
    LoRAResolverRegistry.register_resolver(NAME, resolver)
    return resolver
