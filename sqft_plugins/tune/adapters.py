"""Adapter folders: is it one, which tuner reads it, is it over this base."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqft_plugins.checkpoint.json_object import read_object
from sqft_plugins.configurations import saved_configuration, saved_configurations
from sqft_plugins.elastic import Rank
from sqft_plugins.errors import CheckpointError
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import Tuner

CHAT_TEMPLATE = "chat_template.jinja"
"""Where transformers looks for it first."""


def check_adapter(path: str | Path) -> Path:
    """The adapter folder. Raises CheckpointError where it is none."""
    path = Path(path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (path / name).is_file():
            raise CheckpointError(
                f"adapter {path} has no {name}: give a folder that `sqft train` or save_pretrained wrote"
            )
    return path


def tuner_of(path: Path) -> Tuner:
    """The tuner that wrote an adapter folder. Raises SQFTError naming those there are."""
    kind = read_object(path / "adapter_config.json", "copy the adapter again").get("peft_type", "")
    return get_manager().get("sqft_tuners", str(kind).lower(), f"adapter {path} of type")


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
