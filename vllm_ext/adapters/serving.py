"""In vLLM's API server: reasons in the answers, few names kept, the directory in /v1/models.

Without these patches (another vLLM) names are still resolved by resolver.py; a refusal is then a bare 404 or 400.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Set
from functools import cache
from typing import TYPE_CHECKING, Any

from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelPermission
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.exceptions import VLLMNotFoundError
from vllm.lora.resolver import LoRAResolverRegistry
from vllm.v1.engine.exceptions import EngineDeadError

from sqft_plugins.errors import SQFTError
from sqft_plugins.identity import is_settled
from vllm_ext.adapters.admission import one_line, refused
from vllm_ext.adapters.copies import BusyError
from vllm_ext.adapters.directory import UnknownAdapterError
from vllm_ext.adapters.folder import Records, ServedAdapter, UnknownRankError
from vllm_ext.adapters.kinds import HANDLERS, check_parallel
from vllm_ext.adapters.names import AdapterName, AdapterNameError, parse_name, shown
from vllm_ext.adapters.resolver import NAME, AdapterResolver, Locks, VariantTable
from vllm_ext.patching import apply, replaces

if TYPE_CHECKING:
    from fastapi import Request
    from vllm.engine.protocol import EngineClient
    from vllm.entrypoints.openai.models.protocol import BaseModelPath, LoRAModulePath
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelList
    from vllm.lora.request import LoRARequest

logger = logging.getLogger("vllm.sqft")
GAP_SECONDS = 0.5
"""An adapter that is swapped for another is gone for less."""
HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
LOST = "answers about adapters do not say why they were refused"


@replaces(OpenAIServingModels, LOST, "__init__")
def made_with_resolver(
    self: Any, engine_client: EngineClient, base_model_paths: list[BaseModelPath], *,
    lora_modules: list[LoRAModulePath] | None = None,
) -> None:  # fmt: skip
    """It goes by the resolver that is registered now."""
    made_with_resolver.original(self, engine_client, base_model_paths, lora_modules=lora_modules)
    check_parallel(engine_client.vllm_config)
    patch_invocations()
    self._sqft_resolver = LoRAResolverRegistry.resolvers[NAME]
    self._sqft_resolver.directory.served = [path.name for path in base_model_paths]
    self.lora_requests = VariantTable(self._sqft_resolver.directory)
    self.lora_resolver_lock = Locks()


@replaces(OpenAIServingModels, LOST)
async def resolve_lora(self: Any, lora_name: str) -> LoRARequest | ErrorResponse:
    try:
        parse_name(lora_name)
        async with self.lora_resolver_lock[lora_name]:
            if lora_name in self.lora_requests:
                return self.lora_requests[lora_name]
            return await _resolve(self, lora_name)
    except (AdapterNameError, UnknownAdapterError) as error:
        if len(self.lora_resolvers) > 1:
            return await resolve_lora.original(self, lora_name)
        # raised, not returned: vLLM replaces the message of an answer with this status by one of its own
        raise VLLMNotFoundError(f"The model {shown(lora_name)} does not exist: {one_line(error)}") from error


@replaces(OpenAIServingModels, "names are not listed")
async def show_available_models(self: Any) -> ModelList:
    listed = await show_available_models.original(self)
    listed.data = [card for card in listed.data if not self.lora_requests.is_ours(card.id)]
    known = {card.id for card in listed.data}

    served = self.lora_requests.adapters()
    broken = {name for name in served if self.lora_requests.is_refused(name)}
    names = await asyncio.to_thread(offered, self._sqft_resolver, served, broken)
    listed.data += [_card(self, name, folder) for name, folder in names if name not in known]
    return listed


@replaces(BaseServing, "a chat may get an adapter")
def _get_active_default_mm_loras(self: BaseServing, request: Any) -> LoRARequest | None:
    table = self.models.lora_requests
    if not isinstance(table, VariantTable):  # a server without an engine, which loads nothing
        return _get_active_default_mm_loras.original(self, request)
    kinds = self._get_message_types(request)  # ours are served to who asks for them by name, whatever that is
    found = [lora for name, lora in table.items() if name in kinds and not table.is_ours(name)]
    return found[0] if len(found) == 1 else None


REPLACEMENTS = (made_with_resolver, resolve_lora, show_available_models, _get_active_default_mm_loras)


@cache
def patch_invocations() -> bool:
    """`/invocations` answers for the model that its body names. In the API server, once its routes are made: Amazon's
    package sets up logging when it is imported first. Runs once. Returns False where the package is not installed, and
    so there is no such route.

    vLLM 0.32 hands that route's requests through that package, which puts a header, the SageMaker adapter's name, in
    the place of the body's `model`: also where there is no such header, so that every request, an adapter's and one
    for a model that does not exist, was answered by the base.
    """
    try:
        from model_hosting_container_standards.sagemaker.lora.models import BaseLoRATransformRequestOutput
        from model_hosting_container_standards.sagemaker.lora.transforms import InjectToBodyApiTransform
    except ImportError:
        return False

    @replaces(InjectToBodyApiTransform, "/invocations answers for adapters with the base")
    async def transform_request(self: InjectToBodyApiTransform, raw_request: Request) -> BaseLoRATransformRequestOutput:
        if raw_request.headers.get(HEADER):
            return await transform_request.original(self, raw_request)
        return BaseLoRATransformRequestOutput(request=None, raw_request=raw_request)

    return apply(transform_request)


async def _resolve(models: Any, lora_name: str) -> Any:
    """The LoRARequest, loaded in the workers, or an ErrorResponse with the reason. Where a newer version cannot be
    served, the one before answers on. Raises UnknownAdapterError."""
    table, resolver, adapter = models.lora_requests, models._sqft_resolver, parse_name(lora_name).adapter
    served = table.served(adapter)
    try:
        if models.engine_client.vllm_config.lora_config is None:
            raise SQFTError(f"adapter {lora_name}: this server was started without --enable-lora")

        # as it was when it could not be served
        if served is not None and table.is_refused(adapter):
            return await _load(models, served, lora_name, None)

        # as it is now
        records = resolver.directory.records(adapter)
        newest = None
        try:
            newest, records = await resolver.newest(adapter, served is not None)
            return await _load(models, newest, lora_name, records)
        except (UnknownAdapterError, UnknownRankError, EngineDeadError):
            raise
        except Exception as error:  # whatever a worker says about this adapter
            if served is None or served is newest:
                raise
            text = "sqft: adapter %s cannot be served as it is now (%s): the version before answers on"
            logger.warning(text, adapter, one_line(error))
            answer = await _load(models, served, lora_name, None)
            if not isinstance(error, BusyError):
                table.refuse(adapter, _lasting(records))
            return answer
    except UnknownAdapterError:
        table.remove(adapter)
        raise
    except EngineDeadError:
        raise
    except Exception as error:
        if not isinstance(error, SQFTError):
            logger.warning("sqft: adapter %s was not loaded: %s", lora_name, error)
        return refused(one_line(error))


async def _load(models: Any, copy: ServedAdapter, lora_name: str, records: Records | None) -> Any:
    """The LoRARequest for a variant of that version; the one there is, where it is loaded. records: of the adapter's
    folder, where it holds that version."""
    table = models.lora_requests
    known = table.known(lora_name, copy)
    if known is not None:
        table.add(lora_name, known, copy, _lasting(records))
        return known

    base, settings = models.model_config.model, models.engine_client.vllm_config
    request = await models._sqft_resolver.resolve(copy, base, lora_name, settings)
    request.lora_int_id = models.lora_id_counter.inc(1)
    await models.engine_client.add_lora(request)
    table.add(lora_name, request, copy, _lasting(records))
    logger.info("sqft: adapter %s is loaded", lora_name)
    return request


def _lasting(records: Records | None) -> Records | None:
    """None where something was written so recently that another writing may leave the same records."""
    return records if records is not None and is_settled(records, time.time_ns()) else None


def offered(
    resolver: AdapterResolver, served: Mapping[str, ServedAdapter], broken: Set[str] = frozenset()
) -> list[tuple[str, ServedAdapter]]:
    """(name, folder) of what can be asked for here. served: the adapters of which a version is served, which may be
    there again in a moment. broken: those of them that cannot be served as they are now."""
    folders_now = resolver.directory.folders()
    found = {name: folder for name, folder in folders_now if folder.kind in HANDLERS and name not in broken}
    missing = {name: copy for name, copy in served.items() if name not in found}
    begun = time.monotonic()
    gone = set(missing)
    while gone := {name for name in gone if resolver.directory.records(name) is None}:
        if time.monotonic() - begun >= GAP_SECONDS:
            break
        time.sleep(0.01)
    folders = sorted((found | {name: folder for name, folder in missing.items() if name not in gone}).items())
    return [
        (str(AdapterName(name, rank)), folder)
        for name, folder in folders for rank in folder.variants
    ]  # fmt: skip


def _card(models: Any, name: str, folder: ServedAdapter) -> ModelCard:
    parent = models.base_model_paths[0].name
    return ModelCard(id=name, root=str(folder.source or folder.path), parent=parent, permission=[ModelPermission()])
