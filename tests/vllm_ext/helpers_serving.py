"""Asking vLLM's OpenAIServingModels for a name."""

from __future__ import annotations

import asyncio

from vllm.exceptions import VLLMNotFoundError
from vllm.lora.request import LoRARequest


def resolve(models, name):
    """The LoRARequest, or (status, message)."""
    try:
        answer = asyncio.run(models.resolve_lora(name))
    except VLLMNotFoundError as error:
        return 404, str(error)
    return answer if isinstance(answer, LoRARequest) else (answer.error.code, answer.error.message)
