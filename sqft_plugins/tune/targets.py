"""Which layers of a model `target_modules` means."""

from __future__ import annotations

import re
from pathlib import Path

from sqft_plugins.adapter.lora_config import is_named
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import structure_of_folder
from sqft_plugins.tune.settings import ALL_LINEAR


def check_targets(wanted: list[str] | str, base: str | Path) -> list[str]:
    """The patterns in `wanted` that match no layer of the model folder `base`, while others do. As in PEFT, a text in a
    list is the end of a layer's name, and a text alone a regular expression. Raises SQFTError where none matches."""
    if wanted == ALL_LINEAR:
        return []
    structure = structure_of_folder(base)
    names = [*structure.shapes, *structure.outside]

    patterns = {wanted: wanted} if isinstance(wanted, str) else {pattern: [pattern] for pattern in wanted}
    try:
        missing = [text for text, pattern in patterns.items() if not any(is_named(pattern, name) for name in names)]
    except re.error as error:
        raise SQFTError(f"target_modules={wanted!r} is no regular expression ({error}): correct it") from error
    if len(missing) == len(patterns):
        ends = dict.fromkeys(name.rpartition(".")[2] for name in structure.shapes)
        raise SQFTError(f"target_modules {missing} are none of this model's layers: choose among {', '.join(ends)}")
    return missing
