"""Which layers of a model `target_modules` means."""

from __future__ import annotations

import re
from pathlib import Path

from sqft_plugins.adapter.lora_config import is_named
from sqft_plugins.compress.coverage import Coverage, coverage_of
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import Structure, meta_model, structure_of_folder
from sqft_plugins.tune.settings import ALL_LINEAR


def check_coverage(wanted: list[str] | str, base: str | Path, named: bool) -> Coverage:
    """What part of the weights of `base` an adapter over the layers of `wanted` changes. named: the user chose them.
    Raises SQFTError where the linear layers, all of them, are a small part of the model, and nobody chose."""
    structure = structure_of_folder(base)
    model = meta_model(base)
    if not named:
        coverage_of(model, structure.shapes).check("an adapter", base, "--target-modules NAME,…")
    names = _adaptable(structure)
    return coverage_of(model, [name for name in names if wanted == ALL_LINEAR or is_named(wanted, name)])


def check_targets(wanted: list[str] | str, base: str | Path) -> list[str]:
    """The patterns in `wanted` that match no layer of the model folder `base`, while others do. As in PEFT, a text in a
    list is the end of a layer's name, and a text alone a regular expression. Raises SQFTError where none matches."""
    if wanted == ALL_LINEAR:
        return []
    structure = structure_of_folder(base)
    names = _adaptable(structure)

    patterns = {wanted: wanted} if isinstance(wanted, str) else {pattern: [pattern] for pattern in wanted}
    try:
        missing = [text for text, pattern in patterns.items() if not any(is_named(pattern, name) for name in names)]
    except re.error as error:
        raise SQFTError(f"target_modules={wanted!r} is no regular expression ({error}): correct it") from error
    if len(missing) == len(patterns):
        ends = dict.fromkeys(name.rpartition(".")[2] for name in structure.shapes)
        raise SQFTError(f"target_modules {missing} are none of this model's layers: choose among {', '.join(ends)}")
    return missing


def _adaptable(structure: Structure) -> list[str]:
    """The linear layers of the language model: a tower has layers of the same names, which are not adapted."""
    return [*structure.shapes, *(name for name in structure.outside if not structure.is_beside(name))]
