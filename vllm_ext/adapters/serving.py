"""In vLLM's API server: reasons in the answers, few names kept, the directory in /v1/models.

Without these patches (another vLLM) names are still resolved by resolver.py; a refusal is then a bare 404 or 400.
"""

from __future__ import annotations

import asyncio
import logging
import re
from http import HTTPStatus
from typing import Any

from vllm.entrypoints.openai.models.serving import OpenAIServingModels, create_error_response
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelPermission
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.lora.resolver import LoRAResolverRegistry
from vllm.v1.engine.exceptions import EngineDeadError

from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.directory import UnknownAdapterError
from vllm_ext.adapters.folder import AdapterFolder
from vllm_ext.adapters.kinds import HANDLERS
from vllm_ext.adapters.names import AdapterNameError, parse_name
from vllm_ext.adapters.resolver import NAME, AdapterResolver
from vllm_ext.adapters.table import Locks, VariantTable
from vllm_ext.patching import replace_method

logger = logging.getLogger("vllm.sqft")
WRAPPED = (
    re.compile(r"Call to add_lora method failed: (.*)", re.DOTALL),
    re.compile(r"Worker failed with error '(.*)', please check the stack trace.*", re.DOTALL),
)
"""What vLLM 0.32 puts around the message of an exception in a worker: the engine core, and the executor of several."""


def patch_serving() -> bool:
    """Patches OpenAIServingModels; an instance goes by the resolver that is registered when it is made. Idempotent."""
    lost = "answers about adapters do not say why they were refused"

    def make_init(original):
        def __init__(self, engine_client, base_model_paths, *, lora_modules=None):  # noqa: N807
            original(self, engine_client, base_model_paths, lora_modules=lora_modules)
            resolver = LoRAResolverRegistry.resolvers.get(NAME)
            self._sqft_resolver = resolver if isinstance(resolver, AdapterResolver) else None
            if self._sqft_resolver is not None:
                self._sqft_resolver.directory.served = [path.name for path in base_model_paths]
                self.lora_requests = VariantTable(self._sqft_resolver.directory)
                self.lora_resolver_lock = Locks()

        return __init__

    def make_resolve(original):
        async def resolve_lora(self, lora_name):
            if self._sqft_resolver is None:
                return await original(self, lora_name)
            try:
                parse_name(lora_name)
            except AdapterNameError as error:
                return refused(error)
            async with self.lora_resolver_lock[lora_name]:
                if lora_name in self.lora_requests:
                    return self.lora_requests[lora_name]
                answer = await _resolve(self, self._sqft_resolver, lora_name)
            if answer is None:
                others = len(self.lora_resolvers) > 1
                return await original(self, lora_name) if others else _missing(lora_name)
            return answer

        return resolve_lora

    def make_list(original):
        async def show_available_models(self):
            listed = await original(self)
            if self._sqft_resolver is not None:
                listed.data = [card for card in listed.data if not self.lora_requests.is_ours(card.id)]
                known = {card.id for card in listed.data}
                names = await asyncio.to_thread(offered, self._sqft_resolver)
                listed.data += [_card(self, name, folder) for name, folder in names if name not in known]
            return listed

        return show_available_models

    def make_defaults(original):
        def _get_active_default_mm_loras(self, request):
            table = self.models.lora_requests
            if not isinstance(table, VariantTable):
                return original(self, request)
            kinds = self._get_message_types(request)  # ours are served to who asks for them by name, whatever that is
            found = [lora for name, lora in table.items() if name in kinds and not table.is_ours(name)]
            return found[0] if len(found) == 1 else None

        return _get_active_default_mm_loras

    parameters = ["self", "engine_client", "base_model_paths", "lora_modules"]
    return (
        replace_method(OpenAIServingModels, "__init__", parameters, make_init, lost)
        and replace_method(OpenAIServingModels, "resolve_lora", ["self", "lora_name"], make_resolve, lost)
        and replace_method(OpenAIServingModels, "show_available_models", ["self"], make_list, "names are not listed")
        and replace_method(
            BaseServing, "_get_active_default_mm_loras", ["self", "request"], make_defaults, "a chat may get an adapter"
        )
    )


async def _resolve(models: Any, resolver: AdapterResolver, lora_name: str) -> Any:
    """The LoRARequest, loaded in the workers; an ErrorResponse with the reason; None for an unknown name."""
    signature = resolver.directory.signature(parse_name(lora_name).adapter)
    settings = models.engine_client.vllm_config
    try:
        if settings.lora_config is None:
            raise SQFTError(f"adapter {lora_name}: this server was started without --enable-lora")
        request = await resolver.resolve(models.model_config.model, lora_name, settings)
        request.lora_int_id = models.lora_id_counter.inc(1)
        await models.engine_client.add_lora(request)
    except UnknownAdapterError:
        return None
    except SQFTError as error:
        return refused(error)
    except EngineDeadError:
        raise
    except Exception as error:  # whatever a worker says about this adapter
        logger.warning("sqft: adapter %s was not loaded: %s", lora_name, error)
        return refused(unwrapped(str(error)) or repr(error))
    models.lora_requests.add(lora_name, request, signature)
    await asyncio.to_thread(resolver.copies.tidy, models.lora_requests.folders())
    logger.info("sqft: adapter %s is loaded", lora_name)
    return request


def unwrapped(message: str) -> str:
    """The message of an exception in a worker, as it was there."""
    for pattern in WRAPPED:
        match = pattern.fullmatch(message)
        message = match[1] if match else message
    return message


def offered(resolver: AdapterResolver) -> list[tuple[str, AdapterFolder]]:
    """(name, folder) of what can be asked for here."""
    return [(name, folder) for name, folder in resolver.directory.names() if folder.kind in HANDLERS]


def refused(reason: Exception | str) -> Any:
    """400 with the reason: of the answers of a resolver, vLLM hands on only those with this status."""
    return create_error_response(message=str(reason).split("\n")[0][:500], status_code=HTTPStatus.BAD_REQUEST)


def _missing(name: str) -> Any:
    return create_error_response(
        message=f"LoRA adapter {name} does not exist", err_type="NotFoundError", status_code=HTTPStatus.NOT_FOUND
    )


def _card(models: Any, name: str, folder: AdapterFolder) -> ModelCard:
    parent = models.base_model_paths[0].name
    return ModelCard(id=name, root=str(folder.path), parent=parent, permission=[ModelPermission()])
