"""The architectures, one file each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf_ext.arch.gemma3 import GEMMA3
from gguf_ext.arch.llama import LLAMA
from gguf_ext.arch.spec import Architecture, Config, Entry, Rule, rotary_order
from gguf_ext.errors import UnsupportedArchitectureError
from sqft_plugins.errors import nearest

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Config",
    "Entry",
    "Rule",
    "find_architecture",
    "read_config",
    "rotary_order",
]

ARCHITECTURES: tuple[Architecture, ...] = (GEMMA3, LLAMA)
REFUSED = {"OPTForCausalLM": "llama.cpp has no OPT, so no file can hold it"}


def find_architecture(config: dict[str, Any], model: str | Path) -> Architecture:
    """The table for a config.json. Raises UnsupportedArchitectureError, naming those there are."""
    names = config.get("architectures") or [config.get("model_type", "none")]
    name = names[0]
    known = {cls: architecture for architecture in ARCHITECTURES for cls in architecture.classes}
    if name in known:
        return known[name]
    if name in REFUSED:
        raise UnsupportedArchitectureError(
            f"model {model} is {name}: {REFUSED[name]}; known: {', '.join(sorted(known))}"
        )
    raise UnsupportedArchitectureError(f"model {model} is {name}, which has no table here: {nearest(name, known)}")


def read_config(model: str | Path, architecture: Architecture) -> Config:
    """The configuration with transformers' defaults filled in. Raises UnsupportedArchitectureError for an option that
    llama.cpp's version of the architecture lacks."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).to_dict()
    if reason := architecture.reason(config):
        raise UnsupportedArchitectureError(f"model {model}: {reason}")
    return config
