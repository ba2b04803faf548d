"""The README.md beside an SQFT adapter that PEFT saves: the facts of its configuration, for `sqft_plugins.cards`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from peft_ext.registry import peft_type
from sqft_plugins.cards import adapter


def write_card(folder: Path, config: Any) -> None:
    """Writes how to load the adapter, and what it is, into folder/README.md (`sqft_plugins.cards.adapter`). A folder
    without the adapter's weights gets none. config: an `SQFTConfig`, whose module imports this one."""
    if any((folder / name).exists() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        adapter.complete_card(folder, _facts(folder, config))


def complete_card(original: Callable[..., None], model: Any, output_dir: str) -> None:
    """PeftModel.create_or_update_model_card, and our lines added to what it writes: Trainer writes a card of its own,
    and asks PEFT alone to add to it."""
    original(model, output_dir)
    active = model.active_adapter
    config = model.peft_config.get(active if isinstance(active, str) else active[0])
    if config is not None and config.peft_type == peft_type():
        write_card(Path(output_dir), config)


def _facts(folder: Path, config: Any) -> adapter.AdapterFacts:
    base = config.base_model_name_or_path or ""
    divisor = f"{'√' if config.use_rslora else ''}{config.r}"

    return adapter.AdapterFacts(
        sqft_type=True,
        base=base,
        base_is_int4=(config.grid_stamp or {}).get("base") == "int4",
        auto_class=config.task_type == "CAUSAL_LM" and bool(base),
        ranks=config.rank_choices or sorted({config.r, *(config.rank_pattern or {}).values()}),
        rank_choices=config.rank_choices is not None,
        alpha=config.lora_alpha,
        scaling=f"alpha / {divisor}" + (", other where alpha_pattern says so" if config.alpha_pattern else ""),
        target_modules=config.target_modules or [],
        sparse=config.sparse,
        quantization_aware=config.quantization_aware,
        grid=config.grid,
        parameters=_parameters(folder / SAFETENSORS_WEIGHTS_NAME),
    )


def _parameters(file: Path) -> str:
    try:
        with safe_open(file, framework="pt") as tensors:
            sizes = [math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return "in another format"
    return f"{sum(sizes):,} in {len(sizes)} tensors"
