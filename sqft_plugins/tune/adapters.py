"""Adapter folders: is it one, which tuner reads it, is it over this base."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.configurations import saved_configuration, saved_configurations
from sqft_plugins.elastic import Rank
from sqft_plugins.errors import SQFTError
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import Tuner
from sqft_plugins.structure import structure_of_folder
from sqft_plugins.tune.settings import ALL_LINEAR

CHAT_TEMPLATE = "chat_template.jinja"
"""Where transformers looks for it first."""


def check_adapter(path: str | Path) -> Path:
    """The adapter folder. Raises CheckpointError where it is none."""
    return AdapterFolder(path).path


def tuner_of(path: Path) -> Tuner:
    """The tuner that wrote an adapter folder. Raises SQFTError naming those there are."""
    return get_manager().get("sqft_tuners", AdapterFolder(path).method.lower(), f"adapter {path} of type")


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


def copy_template(adapter: Path, target: Path) -> None:
    """The chat template that the adapter was trained with, where that is not the base's own."""
    if (adapter / CHAT_TEMPLATE).is_file():
        shutil.copyfile(adapter / CHAT_TEMPLATE, target / CHAT_TEMPLATE)


def choose_rank(rank: Rank, tuner: Tuner, adapter: Path) -> Rank:
    """A name that a plug-in offers ("heuristic", "max", …), or of a configuration that the adapter carries, becomes
    module name → rank; numbers and mappings stay."""
    if not isinstance(rank, str):
        return rank
    for searchers in get_manager().hook.sqft_searchers():
        if rank in searchers:
            modules, choices = tuner.search_space(adapter)
            return rank if len(choices) == 1 else searchers[rank](modules, choices)
    return saved_configuration(adapter, rank) if rank in saved_configurations(adapter) else rank
