"""From the name in a request to a variant: vLLM's LoRAResolver, bound to one directory.

vLLM asks its resolvers for every model name it does not know, if VLLM_ALLOW_RUNTIME_LORA_UPDATING is set.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.copies import AdapterCopies
from vllm_ext.adapters.directory import AdapterDirectory, directory_from_environment
from vllm_ext.adapters.kinds import handler
from vllm_ext.adapters.names import AdapterName, parse_name, shown
from vllm_ext.adapters.path import Variant

NAME = "SQFT adapters"
logger = logging.getLogger("vllm.sqft")


class AdapterResolver(LoRAResolver):
    """Serves `NAME` and `NAME@RANK` from `directory`. Every request gets the path of a private copy (copies.py)."""

    def __init__(self, directory: AdapterDirectory):
        self.directory = directory
        self.copies = AdapterCopies(directory)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._jobs: set[asyncio.Task[LoRARequest]] = set()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """None where the name is not ours, or cannot be served; the log says why. vLLM answers 404."""
        try:
            return await self.resolve(base_model_name, lora_name)
        except SQFTError as error:
            logger.warning("sqft: %s not served: %s", shown(lora_name), error)
            return None

    async def resolve(self, base_model_name: str, lora_name: str, settings: Any = None) -> LoRARequest:
        """Raises SQFTError with the reason. settings: vllm's VllmConfig. The id is vLLM's to give."""
        job = asyncio.create_task(self._in_turn(Path(base_model_name), parse_name(lora_name), settings))
        self._jobs.add(job)
        job.add_done_callback(self._ended)
        return await asyncio.shield(job)  # vLLM cancels us when the client hangs up; the turn is not over by that

    async def _in_turn(self, base: Path, name: AdapterName, settings: Any) -> LoRARequest:
        folder = await asyncio.to_thread(self.directory.open, name.adapter)
        async with self._locks[folder.kind]:  # one at a time: a plane may take minutes and much memory; others go on
            return await asyncio.to_thread(self._resolve, base, name, settings)

    def _ended(self, job: asyncio.Task[LoRARequest]) -> None:
        self._jobs.discard(job)
        if not job.cancelled():
            job.exception()  # seen: where the client has hung up, nobody else asks for it

    def _resolve(self, base: Path, name: AdapterName, settings: Any) -> LoRARequest:
        folder = self.directory.open(name.adapter)
        handler(folder).check(folder, name.rank, base if base.is_dir() else None, settings)
        copy = self.copies.take(name.adapter)
        return LoRARequest(lora_name=str(name), lora_int_id=1, lora_path=str(Variant(copy.path, name.rank)))


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
