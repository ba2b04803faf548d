"""Which layers of a model `target_modules` means."""

from __future__ import annotations

import re
from pathlib import Path

from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import structure_of_folder
from sqft_plugins.tune.settings import ALL_LINEAR


def check_targets(wanted: list[str] | str, base: str | Path) -> list[str]:
    """Those of `wanted` that are no layer of the model folder, where others are; as PEFT finds them: a name in a list
    is the end of a layer's, a text that is no list a regular expression. Raises SQFTError where there is no layer."""
    if wanted == ALL_LINEAR:
        return []
    structure = structure_of_folder(base)
    names = [*structure.shapes, *structure.outside]
    try:
        missing = [one for one in _listed(wanted) if not any(_is_meant(name, one, wanted) for name in names)]
    except re.error as error:
        raise SQFTError(f"target_modules={wanted!r} is no regular expression ({error}): correct it") from error
    if len(missing) == len(_listed(wanted)):
        ends = dict.fromkeys(name.rpartition(".")[2] for name in structure.shapes)
        raise SQFTError(f"target_modules {missing} are none of this model's layers: choose among {', '.join(ends)}")
    return missing


def _listed(wanted: list[str] | str) -> list[str]:
    return [wanted] if isinstance(wanted, str) else wanted


def _is_meant(name: str, one: str, wanted: list[str] | str) -> bool:
    return bool(re.fullmatch(one, name)) if isinstance(wanted, str) else name == one or name.endswith(f".{one}")
