"""The README.md beside an SQFT adapter that PEFT saves; `sqft_plugins.cards.adapter` writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from peft_ext.registry import peft_type
from sqft_plugins.cards import adapter


def write_card(folder: Path, config: Any) -> None:
    """Writes how to load the adapter, and what it is, into folder/README.md. A folder without the adapter's weights
    gets none. config: an `SQFTConfig`, whose module imports this one."""
    if any((folder / name).exists() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        adapter.complete_card(folder, config.to_dict())


def complete_card(original: Callable[..., None], model: Any, output_dir: str) -> None:
    """PeftModel.create_or_update_model_card, and our lines added to what it writes: Trainer writes a card of its own,
    and asks PEFT alone to add to it."""
    original(model, output_dir)
    active = model.active_adapter
    config = model.peft_config.get(active if isinstance(active, str) else active[0])
    if config is not None and config.peft_type == peft_type():
        write_card(Path(output_dir), config)
