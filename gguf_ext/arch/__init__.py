"""The architectures, one short file each, and those that plug-ins add through `sqft_gguf_architectures`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf_ext.arch.bloom import BLOOM
from gguf_ext.arch.gemma3 import GEMMA3
from gguf_ext.arch.gpt2 import GPT2
from gguf_ext.arch.llama import LLAMA
from gguf_ext.arch.mistral import MISTRAL
from gguf_ext.arch.phi3 import PHI3
from gguf_ext.arch.qwen import QWEN2, QWEN3
from gguf_ext.arch.spec import Architecture, Config, Entry, Key, Rule, head_width, rotary, rotary_order
from gguf_ext.errors import UnsupportedArchitectureError
from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.plugins import get_manager

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Config",
    "Entry",
    "Key",
    "Rule",
    "find_architecture",
    "head_width",
    "known_architectures",
    "normalized",
    "read_config",
    "rotary",
    "rotary_order",
]

ARCHITECTURES: tuple[Architecture, ...] = (BLOOM, GEMMA3, GPT2, LLAMA, MISTRAL, PHI3, QWEN2, QWEN3)
REFUSED = {"OPTForCausalLM": "llama.cpp has no OPT, so no file can hold it"}


def known_architectures() -> dict[str, Architecture]:
    """Class in config.json → table: ours and those of plug-ins. Raises SQFTError for a class that is there twice."""
    known: dict[str, Architecture] = {}
    for group in (ARCHITECTURES, *get_manager().hook.sqft_gguf_architectures()):
        for architecture in group:
            for name in architecture.classes:
                if name in known:
                    raise SQFTError(
                        f"two plug-ins offer {name!r} through sqft_gguf_architectures: uninstall one, see "
                        f"`sqft plugins`"
                    )
                known[name] = architecture
    return known


def find_architecture(config: dict[str, Any], model: str | Path) -> Architecture:
    """The table for a config.json. Raises UnsupportedArchitectureError, naming those there are."""
    names = config.get("architectures") or [config.get("model_type", "none")]
    name = names[0]
    known = known_architectures()
    if name in known:
        return known[name]
    if name in REFUSED:
        raise UnsupportedArchitectureError(
            f"model {model} is {name}: {REFUSED[name]}; known: {', '.join(sorted(known))}"
        )
    raise UnsupportedArchitectureError(f"model {model} is {name}, which has no table here: {nearest(name, known)}")


def read_config(model: str | Path, architecture: Architecture) -> Config:
    """The configuration with transformers' defaults and common names (GPT-2 says `n_layer`) filled in. Raises
    UnsupportedArchitectureError for an option that llama.cpp's version of the architecture lacks, CheckpointError for a
    config.json that transformers does not know."""
    from sqft_plugins.compress.find import transformers_config  # imports all of transformers

    return normalized(transformers_config(model), model, architecture)


def normalized(found: Any, model: str | Path, architecture: Architecture) -> Config:
    """What `read_config` gives, of a configuration object of transformers. model: for the message."""
    common = {name: getattr(found, own) for name, own in found.attribute_map.items() if hasattr(found, own)}
    config = {**found.to_dict(), **common}
    if reason := architecture.reason(config):
        raise UnsupportedArchitectureError(f"model {model}: {reason}")
    return config
