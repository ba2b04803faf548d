"""The architectures, one short file each, and those that plug-ins add through `sqft_gguf_architectures`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from gguf_ext.arch.bloom import BLOOM
from gguf_ext.arch.cohere import COHERE, COHERE2
from gguf_ext.arch.gemma import GEMMA, GEMMA2
from gguf_ext.arch.gemma3 import GEMMA3
from gguf_ext.arch.gpt2 import GPT2
from gguf_ext.arch.layer_norm import FALCON, GPTNEOX, NEMOTRON, PHI2, STABLELM, STARCODER2
from gguf_ext.arch.like_llama import ARCEE, ERNIE, EXAONE4, GLM, GLM4, GRANITE, HUNYUAN, SEED_OSS, SMOLLM3
from gguf_ext.arch.llama import LLAMA
from gguf_ext.arch.mistral import MISTRAL
from gguf_ext.arch.olmo import OLMO, OLMO2, OLMO3
from gguf_ext.arch.phi3 import PHI3
from gguf_ext.arch.qwen import QWEN2, QWEN3
from gguf_ext.arch.spec import Architecture, Config, Entry, Key, Rule, Told, head_width, rotary, rotary_order
from gguf_ext.errors import UnsupportedArchitectureError
from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.plugins import get_manager
from sqft_plugins.structure import transformers_config

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Config",
    "Entry",
    "Key",
    "Rule",
    "Told",
    "find_architecture",
    "head_width",
    "known_architectures",
    "model_class",
    "normalized",
    "read_config",
    "rotary",
    "rotary_order",
    "table_of",
]

ARCHITECTURES: tuple[Architecture, ...] = (
    ARCEE, BLOOM, COHERE, COHERE2, ERNIE, EXAONE4, FALCON, GEMMA, GEMMA2, GEMMA3, GLM, GLM4, GPT2, GPTNEOX, GRANITE,
    HUNYUAN, LLAMA, MISTRAL, NEMOTRON, OLMO, OLMO2, OLMO3, PHI2, PHI3, QWEN2, QWEN3, SEED_OSS, SMOLLM3, STABLELM,
    STARCODER2,
)  # fmt: skip
REFUSED = {
    "OPTForCausalLM": "llama.cpp has no OPT, so no file can hold it",
    "GPTJForCausalLM": "llama.cpp has no GPT-J, so no file can hold it",
}


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
    found = table_of(config, model)
    if found is None:
        name = model_class(config)
        raise UnsupportedArchitectureError(
            f"model {model} is {name}, which has no table here: {nearest(name, known_architectures())}"
        )
    return found


def table_of(config: dict[str, Any], model: str | Path) -> Architecture | None:
    """The table for a config.json, None where there is none: only then may a file of the same base give the layout.

    The class that `architectures` names and the one that transformers makes of `model_type` count alike, so that a
    model which a table would refuse is not let in under another name. Raises UnsupportedArchitectureError for a class
    that llama.cpp lacks, and where the two have different tables.
    """
    known = known_architectures()
    named, loaded = model_class(config), _class_of_type(config)

    # a class that llama.cpp lacks, or two classes with different tables
    for name in (named, loaded):
        if name in REFUSED:
            raise UnsupportedArchitectureError(
                f"model {model} is {name}: {REFUSED[name]}; known: {', '.join(sorted(known))}"
            )
    if loaded in known and named in _classes().values() and known.get(named) is not known[loaded]:
        raise UnsupportedArchitectureError(
            f"model {model} is {named} by its architectures, but {loaded} by its model_type, which transformers loads: "
            "correct config.json"
        )

    # the class's own name decides; without one, the type's
    if named in known or not config.get("architectures"):
        return known.get(named)
    if loaded in known:
        raise UnsupportedArchitectureError(
            f"model {model} is {named}, which has no table here, but transformers loads it as {loaded}: if it is that, "
            f'write "architectures": ["{loaded}"] in its config.json'
        )
    return None


def model_class(config: dict[str, Any]) -> str:
    """The class that a config.json names, else that of its type, else the type."""
    names = config.get("architectures")
    return str(names[0]) if names else _class_of_type(config) or str(config.get("model_type", "none"))


def _class_of_type(config: dict[str, Any]) -> str:
    """The class that `AutoModelForCausalLM` makes of a config.json; "" where transformers does not know the type."""
    return _classes().get(str(config.get("model_type", "")), "")


def _classes() -> Mapping[str, str]:
    """model_type → class of every causal language model that transformers has."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return cast(Mapping[str, str], MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def read_config(model: str | Path, architecture: Architecture) -> Config:
    """The configuration with transformers' defaults and common names (GPT-2 says `n_layer`) filled in. Raises
    UnsupportedArchitectureError for an option that llama.cpp's version of the architecture lacks, CheckpointError for a
    config.json that transformers does not know."""
    return normalized(transformers_config(model), model, architecture)


def normalized(found: Any, model: str | Path, architecture: Architecture) -> Config:
    """What `read_config` gives, of a configuration object of transformers. model: for the message."""
    config = completed(found)
    if reason := architecture.reason(config):
        raise UnsupportedArchitectureError(f"model {model}: {reason}")
    return config


def completed(found: Any) -> Config:
    """A configuration object of transformers with common names (GPT-2 says `n_layer`) filled in."""
    common = {name: getattr(found, own) for name, own in found.attribute_map.items() if hasattr(found, own)}
    return {**found.to_dict(), **common}
