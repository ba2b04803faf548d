"""Before a request or an adapter is let in: what a worker would stumble over is refused, because an exception there
ends the engine (vLLM 0.32). In the API server, and in the process of `LLM`."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve import create_error_response
from vllm.exceptions import VLLMValidationError
from vllm.lora.resolver import LoRAResolverRegistry
from vllm.v1.engine.input_processor import InputProcessor

from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.folder import open_variant, signature
from vllm_ext.adapters.kinds import check
from vllm_ext.adapters.load import check_plain
from vllm_ext.adapters.names import variant_of
from vllm_ext.adapters.resolver import NAME, VariantRequest
from vllm_ext.patching import replaces

if TYPE_CHECKING:
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest
    from vllm.lora.request import LoRARequest

WRAPPED = (
    re.compile(r"Call to add_lora method failed: (.*)", re.DOTALL),
    re.compile(r"Worker failed with error '(.*)', please check the stack trace.*", re.DOTALL),
)
"""What vLLM 0.32 puts around the message of an exception in a worker: the engine core, and the executor of several."""
CHECKED = 1024
"""Variants of which it is remembered that they were checked."""


@replaces(InputProcessor, "a damaged adapter can end the engine")
def _validate_lora(self: InputProcessor, lora_request: LoRARequest | None) -> None:
    """Each request. An adapter is checked once, and again when a file has changed."""
    _validate_lora.original(self, lora_request)
    if lora_request is None or isinstance(lora_request, VariantRequest):  # the resolver has checked it, in a thread
        return

    path, checked = lora_request.lora_path, self.__dict__.setdefault("_sqft_checked", {})
    try:
        variant = variant_of(path)
        now = signature(Path(path) if variant is None else variant.folder)
        if now is not None and checked.get(path) == now:
            return
        check_path(path, _base(self.vllm_config), self.vllm_config)
    except SQFTError as error:
        raise VLLMValidationError(str(error), parameter="model") from error

    if len(checked) >= CHECKED:
        checked.clear()
    checked[path] = now


def _base(settings: Any) -> Path | None:
    """The model's folder. None where a resolver serves: it has compared the bases, and not on the event loop, because
    that reads every mask."""
    base = Path(settings.model_config.model)
    return base if base.is_dir() and NAME not in LoRAResolverRegistry.resolvers else None


@replaces(OpenAIServingModels, "a wrong rank is answered with 500")
async def load_lora_adapter(
    self: OpenAIServingModels, request: LoadLoRAAdapterRequest, base_model_name: str | None = None
) -> ErrorResponse | str:
    """/v1/load_lora_adapter and --lora-modules: what is wrong with an adapter is the client's error, 400, said before
    a worker is asked; vLLM makes 500 of whatever a worker says."""
    path, settings, base = request.lora_path, self.engine_client.vllm_config, Path(self.model_config.model)
    if path and settings.lora_config is not None:
        try:
            await asyncio.to_thread(check_path, path, base if base.is_dir() else None, settings)
        except SQFTError as error:
            return refused(one_line(error))
    return await load_lora_adapter.original(self, request, base_model_name)


def check_path(lora_path: str, base: Path | None, settings: Any) -> None:
    """Raises SQFTError for a variant, or a folder, that cannot be served here. base: the model's folder, None where it
    is not to be compared."""
    variant = variant_of(lora_path)
    if variant is None:
        check_plain(lora_path, settings.lora_config.lora_dtype)
    else:
        folder = open_variant(variant)
        check(folder, variant, base, settings)


def refused(reason: str) -> Any:
    """400 with the reason."""
    return create_error_response(message=reason, status_code=HTTPStatus.BAD_REQUEST)


def one_line(error: Exception) -> str:
    """The reason, as it was where it was raised."""
    return (unwrapped(str(error)) or repr(error)).split("\n")[0][:500]


def unwrapped(message: str) -> str:
    """The message of an exception in a worker, as it was there."""
    for pattern in WRAPPED:
        match = pattern.fullmatch(message)
        message = match[1] if match else message
    return message
