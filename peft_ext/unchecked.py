"""Tensors of an adapter that come without its configuration (`set_peft_model_state_dict`, `load_state_dict`): nobody
knows over which base they were trained, and a warning says so."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from sqft_plugins.adapter.folder import CONFIG

NOT_CHECKED = "whether its tensors were trained over the zeros of this base was not checked"
FRESH = "_no_tensors_came_yet"
"""Set on the configuration of an adapter whose base was looked at just now, when it was added."""


_checked = ContextVar("checked", default=False)


@contextmanager
def checked() -> Iterator[None]:
    """In here tensors are loaded of which the configuration was checked: no warning."""
    token = _checked.set(True)
    try:
        yield
    finally:
        _checked.reset(token)


def warn_unchecked(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
    """Load-state-dict pre-hook of the whole model: warns where a state dict holds tensors of an adapter and not the
    base's own weights, with which they would belong together."""
    if any(key.startswith(prefix) and ".base_layer." in key for key in state_dict):
        for config in getattr(module, "peft_config", {}).values():
            vars(config).pop(FRESH, None)

    adapted = {key.split(".lora_A.")[0] for key in state_dict if key.startswith(prefix) and ".lora_A." in key}
    if _checked.get() or all(f"{name}.base_layer.weight" in state_dict for name in adapted):
        return
    warnings.warn(
        f"tensors of an adapter came without its {CONFIG}: {NOT_CHECKED}. load_adapter(FOLDER, NAME) checks it",
        stacklevel=4,
    )
