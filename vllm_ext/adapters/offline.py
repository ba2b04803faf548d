"""Variants without a server: `LLM.generate(..., lora_request=lora_request("adapters/math@r16"))`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vllm.lora.request import LoRARequest

from vllm_ext.adapters.folder import open_adapter, signature
from vllm_ext.adapters.kinds import check
from vllm_ext.adapters.names import Variant, parse_name
from vllm_ext.met import meet

_NUMBERED: dict[int, str] = {}


def lora_request(adapter: str | Path, lora_int_id: int | None = None) -> LoRARequest:
    """The request for `FOLDER` or `FOLDER@RANK`, perhaps with `*STRENGTH` (names.py). Raises SQFTError for
    anything else, before any model runs.

    lora_int_id: unique a variant, as vLLM wants it; by default it follows from the path, the rank and the files, so an
    adapter that was trained anew is another one.
    """
    meet()
    path = Path(adapter).absolute()
    name = parse_name(path.name)
    own = path.with_name(name.adapter)
    folder = open_adapter(own)
    check(folder, name, None)
    variant = str(Variant(own, name.rank, signature(own) or "", name.strength))
    return LoRARequest(lora_name=path.name, lora_int_id=lora_int_id or _number_of(variant), lora_path=variant)


def _number_of(variant: str) -> int:
    """A number that no other variant has in this process: vLLM takes the same number for the same weights."""
    number = 1 + int(hashlib.sha256(variant.encode()).hexdigest()[:7], 16)
    while _NUMBERED.setdefault(number, variant) != variant:
        number += 1
    return number
