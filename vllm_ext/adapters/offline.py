"""Variants without a server: `LLM.generate(..., lora_request=lora_request("adapters/math@r16"))`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.v1.engine.input_processor import InputProcessor

from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.folder import open_adapter
from vllm_ext.adapters.kinds import handler
from vllm_ext.adapters.load import check_limit, variant_of
from vllm_ext.adapters.names import parse_name
from vllm_ext.adapters.path import Variant
from vllm_ext.patching import replace_method


def lora_request(adapter: str | Path, lora_int_id: int | None = None) -> LoRARequest:
    """The request for `FOLDER` or `FOLDER@RANK` (names.py). Raises SQFTError for what is none, before any model runs.

    lora_int_id: unique a variant, as vLLM wants it; by default it follows from the path and the rank.
    """
    path = Path(adapter).absolute()
    name = parse_name(path.name)
    variant = Variant(path.with_name(name.adapter), name.rank)
    folder = open_adapter(variant.folder)
    handler(folder).check(folder, variant.rank, None)
    if lora_int_id is None:
        lora_int_id = 1 + int(hashlib.sha256(str(variant).encode()).hexdigest()[:7], 16)
    return LoRARequest(lora_name=path.name, lora_int_id=lora_int_id, lora_path=str(variant))


def patch_admission() -> bool:
    """A request for a variant that cannot be loaded is refused before it is queued: the exception in the worker would
    end the engine (vLLM 0.32)."""

    def make(original):
        def _validate_lora(self, lora_request):
            original(self, lora_request)
            variant = variant_of(lora_request.lora_path) if lora_request is not None else None
            if variant is None:
                return
            try:
                folder = open_adapter(variant.folder)
                handler(folder).check(folder, variant.rank, None)
                if folder.kind == "lora":
                    check_limit(folder, variant.rank, self.lora_config.max_lora_rank)
            except SQFTError as error:
                raise VLLMValidationError(str(error), parameter="model") from error

        return _validate_lora

    return replace_method(
        InputProcessor, "_validate_lora", ["self", "lora_request"], make, "a damaged adapter can end the engine"
    )
