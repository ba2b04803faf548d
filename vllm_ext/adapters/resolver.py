"""From the name in a request to a variant: vLLM's LoRAResolver, bound to one directory.

vLLM asks its resolvers for every model name it does not know, if VLLM_ALLOW_RUNTIME_LORA_UPDATING is set.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.copies import AdapterCopies
from vllm_ext.adapters.directory import AdapterDirectory, directory_from_environment
from vllm_ext.adapters.kinds import handler
from vllm_ext.adapters.names import parse_name, shown
from vllm_ext.adapters.path import Variant

NAME = "SQFT adapters"
logger = logging.getLogger("vllm.sqft")


class AdapterResolver(LoRAResolver):
    """Serves `NAME` and `NAME@RANK` from `directory`. Every request gets the path of a private copy (copies.py)."""

    def __init__(self, directory: AdapterDirectory):
        self.directory = directory
        self.copies = AdapterCopies(directory)
        self._lock = asyncio.Lock()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """None where the name is not ours, or cannot be served; the log says why. vLLM answers 404."""
        try:
            return await self.resolve(base_model_name, lora_name)
        except SQFTError as error:
            logger.warning("sqft: %s not served: %s", shown(lora_name), error)
            return None

    async def resolve(self, base_model_name: str, lora_name: str, limit: int | None = None) -> LoRARequest:
        """Raises SQFTError with the reason. limit: --max-lora-rank. The id is vLLM's to give."""
        async with self._lock:  # one copy at a time; the event loop goes on meanwhile
            return await asyncio.to_thread(self._resolve, base_model_name, lora_name, limit)

    def _resolve(self, base_model_name: str, lora_name: str, limit: int | None) -> LoRARequest:
        name = parse_name(lora_name)
        base = Path(base_model_name)
        folder = self.directory.open(name.adapter)
        handler(folder).check(folder, name.rank, base if base.is_dir() else None)
        if limit is not None and folder.kind == "lora":
            from vllm_ext.adapters.load import check_limit

            check_limit(folder, name.rank, limit)
        copy = self.copies.take(name.adapter)
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(Variant(copy.path, name.rank)))


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
