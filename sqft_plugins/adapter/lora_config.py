"""What a `LoraConfig` says of one module: whether it is adapted, its rank, its scaling. PEFT's rules, without PEFT.

    W' = W + s · B A        s = alpha / r, with rank-stabilized LoRA (rsLoRA) alpha / √r

alpha and r are those of the first pattern that matches the end of the module's name, else `lora_alpha` and `r`.
A sub-adapter of an elastic adapter keeps the s of the largest rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqft_plugins.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from sqft_plugins.checkpoint import ModelFolder

DEFAULT_RANK = DEFAULT_ALPHA = 8
"""Of a LoraConfig that names none."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""Ends of the names of input embeddings, which a tied output head shares."""


def pattern_value(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name (`get_pattern_key` in
    peft/utils/other.py)."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)


def check_lora_config(config: Mapping[str, Any], name: str) -> None:
    """Raises CheckpointError for ranks and alphas of which no scaling can be made. name: the adapter, for messages."""
    ranks = {"r": config.get("r", DEFAULT_RANK), **_patterns(config, "rank_pattern", name)}
    alphas = {"lora_alpha": config.get("lora_alpha", DEFAULT_ALPHA), **_patterns(config, "alpha_pattern", name)}
    for field, rank in ranks.items():
        if type(rank) is not int or rank < 1:
            raise CheckpointError(f"adapter {name}: {field}={rank!r} in adapter_config.json is no rank: copy it again")
    for field, alpha in alphas.items():
        if type(alpha) not in (int, float) or not _is_finite(alpha):
            raise CheckpointError(
                f"adapter {name}: {field}={str(alpha)[:40]} in adapter_config.json is no finite number: copy it again"
            )
    if not any(alphas.values()):
        raise CheckpointError(f"adapter {name}: lora_alpha=0 in adapter_config.json switches it off: serve the base")


def rank_of(config: Mapping[str, Any], module: str) -> int:
    return pattern_value(config.get("rank_pattern"), module, config.get("r", DEFAULT_RANK))


def scaling_of(config: Mapping[str, Any], module: str) -> float:
    """s of one module (peft/tuners/lora/layer.py, `update_layer`)."""
    alpha = pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha", DEFAULT_ALPHA))
    return alpha / divisor(rank_of(config, module), bool(config.get("use_rslora")))


def divisor(rank: float, rslora: bool) -> float:
    """What alpha is divided by at a rank. Also of a ratio of ranks, divisor(a) / divisor(b) being divisor(a / b)."""
    return math.sqrt(rank) if rslora else rank


def sub_adapter_alpha(alpha: float, rank: int, max_rank: int, rslora: bool = False) -> float:
    """The alpha with which a plain LoRA of rank `rank` scales as the super-adapter of rank `max_rank` does: libraries
    divide alpha by the rank that they see."""
    scaled = alpha * divisor(rank / max_rank, rslora)
    return int(scaled) if scaled == int(scaled) else scaled


def is_adapted(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT would adapt a module of this name (peft/tuners/tuners_utils.py, `check_target_module_exists`): it
    leaves out tensors of others, and only warns. Raises re.error."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if excluded and is_named(excluded, module):
        return False
    if any(re.match(rf"(^|.*\.){saved}($|\..*)", module) for saved in config.get("modules_to_save") or ()):
        return False
    if not targets or targets == "all-linear" or config.get("target_parameters"):
        return True  # the first is what a kind of model has by default, which is known to PEFT alone
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return is_named(targets, module)
    return is_named(targets, module) and _layer(module, config.get("layers_pattern")) in (
        layers if isinstance(layers, list) else [layers]
    )


def check_adapted(config: Mapping[str, Any], module: str, name: str) -> None:
    """Raises CheckpointError for a module with tensors that PEFT would not load. name: the adapter, for messages."""
    try:
        named = is_adapted(config, module)
    except (re.error, TypeError, AttributeError) as error:
        raise CheckpointError(f"adapter {name}: target_modules cannot be read ({error}): copy it again") from error
    if not named:
        raise CheckpointError(
            f"adapter {name} holds tensors of {module}, which target_modules in adapter_config.json does not name, so "
            "that PEFT leaves them out: copy the whole adapter again"
        )


def is_named(names: Any, module: str) -> bool:
    """Whether PEFT takes a module for one of `names`: a text is a regular expression, in a list the end of a name."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer(module: str, patterns: Any) -> int | None:
    """The number of the layer that a module is in."""
    patterns = [patterns] if isinstance(patterns, str) and patterns else patterns or []
    wanted = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(\d+)\."]
    found = next((match for pattern in wanted if (match := re.match(pattern, module))), None)
    return int(found[1]) if found else None


def _patterns(config: Mapping[str, Any], field: str, name: str) -> dict[str, Any]:
    """{"FIELD[PATTERN]": value}"""
    patterns = config.get(field) or {}
    try:
        if isinstance(patterns, dict):
            return {f"{field}[{key}]": value for key, value in patterns.items() if re.compile(key)}
        problem = "no JSON object"
    except re.error as error:
        problem = f"no pattern ({error})"
    raise CheckpointError(f"adapter {name}: {field} in adapter_config.json is {problem}: copy it again")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer of more digits than a float has
        return False


def is_weight_of(base: ModelFolder, module: str, weight: Tensor) -> bool | None:
    """Whether `weight`, which PEFT saved along with an adapted embedding or output head, is that of `base` in the dtype
    that it was loaded in; None where `base` holds none to compare with."""
    names = [f"{name}.weight" for name in (module, module.partition(".")[2])]
    if base.config.get("tie_word_embeddings") or not any(name in base.files for name in names):
        names += [name for name in base.files if name.endswith(EMBEDDINGS)]
    stored = next((base.tensor(name) for name in names if name in base.files), None)
    return None if stored is None else stored.shape == weight.shape and stored.to(weight.dtype).equal(weight)
