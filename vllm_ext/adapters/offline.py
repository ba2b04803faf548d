"""Variants without a server: `LLM.generate(..., lora_request=lora_request("adapters/math@r16"))`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolverRegistry
from vllm.v1.engine.input_processor import InputProcessor

from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.folder import open_adapter, signature, version_of
from vllm_ext.adapters.kinds import handler
from vllm_ext.adapters.load import check_plain, variant_of
from vllm_ext.adapters.names import parse_name
from vllm_ext.adapters.path import Variant
from vllm_ext.adapters.resolver import NAME
from vllm_ext.patching import replace_method

CHECKED = 1024
"""Variants of which it is remembered that they were checked."""
_NUMBERED: dict[int, str] = {}


def lora_request(adapter: str | Path, lora_int_id: int | None = None) -> LoRARequest:
    """The request for `FOLDER` or `FOLDER@RANK` (names.py). Raises SQFTError for what is none, before any model runs.

    lora_int_id: unique a variant, as vLLM wants it; by default it follows from the path, the rank and the files, so an
    adapter that was trained anew is another one.
    """
    path = Path(adapter).absolute()
    name = parse_name(path.name)
    own = path.with_name(name.adapter)
    folder = open_adapter(own)
    handler(folder).check(folder, name.rank, None)
    variant = str(Variant(own, name.rank, version_of(own)))
    return LoRARequest(lora_name=path.name, lora_int_id=lora_int_id or _number_of(variant), lora_path=variant)


def _number_of(variant: str) -> int:
    """A number that no other variant has in this process: vLLM takes the same number for the same weights."""
    number = 1 + int(hashlib.sha256(variant.encode()).hexdigest()[:7], 16)
    while _NUMBERED.setdefault(number, variant) != variant:
        number += 1
    return number


def patch_admission() -> bool:
    """A request for a variant that cannot be loaded is refused before it is queued: the exception in the worker would
    end the engine (vLLM 0.32). Checked once, and again when a file has changed."""

    def make(original):
        def _validate_lora(self, lora_request):
            original(self, lora_request)
            if lora_request is None:
                return
            try:
                variant = variant_of(lora_request.lora_path)
                checked = self.__dict__.setdefault("_sqft_checked", {})
                now = signature(Path(lora_request.lora_path) if variant is None else variant.folder)
                if now is not None and checked.get(lora_request.lora_path) == now:
                    return
                if variant is None:
                    check_plain(lora_request.lora_path, self.vllm_config.lora_config.lora_dtype)
                else:
                    _check(variant, self.vllm_config)
            except SQFTError as error:
                raise VLLMValidationError(str(error), parameter="model") from error
            if len(checked) >= CHECKED:
                checked.clear()
            checked[lora_request.lora_path] = now

        return _validate_lora

    return replace_method(
        InputProcessor, "_validate_lora", ["self", "lora_request"], make, "a damaged adapter can end the engine"
    )


def _check(variant: Variant, settings: Any) -> None:
    folder = open_adapter(variant.folder)
    if variant.version not in ("", version_of(variant.folder)):
        raise SQFTError(f"adapter {folder.path.name} has changed since: ask lora_request for it again")
    handler(folder).check(folder, variant.rank, _base(settings), settings)


def _base(settings: Any) -> Path | None:
    """The model's folder. None where a resolver serves: it has compared the bases, and not on the event loop, because
    that reads every mask."""
    base = Path(settings.model_config.model)
    return base if base.is_dir() and NAME not in LoRAResolverRegistry.resolvers else None
