"""The kinds and ranges of a configuration's fields, all in one table: LoraConfig checks few of them, and a wrong one
shows as a TypeError in a layer, or never."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from sqft_plugins.adapter.initialisations import CHANGING, PLAIN
from sqft_plugins.elastic import is_rank
from sqft_plugins.errors import SQFTError, nearest

MOST_RANK = 2**16
"""More than the width of any model's layer."""
INITIALISATIONS = ("gaussian", "orthogonal", "eva")


Test = Callable[[Any], bool]


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether it is a number such as 4, also NumPy's; True is not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_real(value) and value > 0


def _is_replication(value: Any) -> bool:
    return isinstance(value, Sequence) and all(_indices(pair) and len(pair) == 2 for pair in value)


def _is_some(value: Any) -> bool:
    return _indices(value) and len(value) > 0


def _kind(*kinds: type) -> Test:
    return lambda value: isinstance(value, kinds)


def _one_of(*values: str) -> Test:
    return lambda value: value in values


def _list_of(test: Test) -> Test:
    return lambda value: (
        isinstance(value, Collection) and not isinstance(value, Mapping | str | bytes) and all(map(test, value))
    )


def _pattern_of(test: Test) -> Test:
    return lambda value: isinstance(value, Mapping) and all(isinstance(k, str) and test(v) for k, v in value.items())


def _optional(*tests: Test) -> Test:
    return lambda value: value is None or any(test(value) for test in tests)


_indices, _names, _text = _list_of(is_whole), _list_of(_kind(str)), _kind(str)
NAMES = (_optional(_text, _names), "a list of names, or a pattern")
FILLED_IN = "left out: it is filled in"

RULES: dict[str, tuple[Test, str]] = {
    "r": (lambda value: is_rank(value) and value <= MOST_RANK, f"a whole number from 1 to {MOST_RANK}, such as 16"),
    "lora_alpha": (_is_positive, "a number above 0, such as 32"),
    "lora_dropout": (lambda value: _is_real(value) and 0 <= value < 1, "a number from 0, below 1"),
    "bias": (_one_of("none", "all", "lora_only"), "'none', 'all' or 'lora_only'"),
    "target_modules": NAMES,
    "exclude_modules": NAMES,
    "modules_to_save": (_optional(_names), "a list of names"),
    "layers_to_transform": (_optional(is_whole, _indices), "a list of numbers of layers, from 0"),
    "layers_pattern": NAMES,
    "layer_replication": (_optional(_is_replication), "a list of (first layer, the one after the last)"),
    "megatron_core": (_optional(_text), "the name of a module"),
    "rank_pattern": (_optional(_pattern_of(is_rank)), "{name or pattern: rank}, each rank a whole number from 1"),
    "alpha_pattern": (_optional(_pattern_of(_is_positive)), "{name or pattern: alpha}, each alpha a number above 0"),
    "trainable_token_indices": (
        _optional(_is_some, _pattern_of(_is_some)),
        "a list of token numbers, or {name of an embedding: such a list}",
    ),
    "init_lora_weights": (_kind(bool, str), "True, False, 'gaussian' or 'orthogonal'"),
    "share_rank": (_one_of("layer", "module"), "'layer' or 'module'"),
    "rounding": (_one_of("nearest", "compensated"), "'nearest' or 'compensated'"),
    "grid": (_optional(_kind(str, Path)), "a path"),
    "mask_hash": (_optional(_text), FILLED_IN),
    "grid_stamp": (_optional(_kind(Mapping)), FILLED_IN),
    **dict.fromkeys(
        (
            *("sparse", "quantization_aware", "use_rslora", "lora_bias", "fan_in_fan_out", "inference_mode"),
            *("use_dora", "use_qalora", "ensure_weight_tying"),
        ),
        (_kind(bool), "True or False"),
    ),
}
"""Field → (test of its value, what it takes)."""


def check_fields(config: Any) -> None:
    """Raises SQFTError for a field of a kind or range that cannot work, naming it, its value and what it takes."""
    for name, (fits, takes) in RULES.items():
        value = getattr(config, name)
        try:
            right = fits(value)
        except (TypeError, ValueError):  # no comparison: of an array, say
            right = False
        if not right and name == "share_rank":
            raise SQFTError(f"share_rank={value!r} is unknown: {nearest(str(value), ('layer', 'module'))}")
        if not right:
            raise SQFTError(f"{name}={value!r} is not what it takes: give {takes}")
    init = config.init_lora_weights
    if isinstance(init, str) and not init.lower().startswith((*PLAIN, *CHANGING)):
        raise SQFTError(f"init_lora_weights={init!r} is unknown: {nearest(init, INITIALISATIONS)}")


def as_plain_numbers(config: Any) -> None:
    """NumPy's numbers and collections as Python's: others cannot be saved as JSON, and PEFT looks them up by kind."""
    config.r = int(config.r)
    if not isinstance(config.lora_alpha, int | float):
        config.lora_alpha = float(config.lora_alpha)
    config.rank_pattern = {name: int(rank) for name, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = dict(config.alpha_pattern or {})
    layers, tokens = config.layers_to_transform, config.trainable_token_indices
    if layers is not None:
        config.layers_to_transform = int(layers) if is_whole(layers) else _as_list(layers)
    if isinstance(tokens, Mapping):
        config.trainable_token_indices = {name: _as_list(indices) for name, indices in tokens.items()}
    elif tokens is not None:
        config.trainable_token_indices = _as_list(tokens)


def _as_list(indices: Collection[Any]) -> list[int]:
    return [int(index) for index in (sorted(indices) if isinstance(indices, set | frozenset) else indices)]


def check_ignored(config: Any) -> None:
    """Raises SQFTError for fields of LoraConfig that would be taken and do nothing here."""
    if config.use_qalora:
        raise SQFTError(
            "use_qalora=True is not supported: it is for GPTQ layers only. Leave it out, quantization_aware=True "
            "trains through a grid"
        )
    if config.qalora_group_size != type(config).qalora_group_size:
        raise SQFTError(f"qalora_group_size={config.qalora_group_size!r} needs use_qalora, which is not supported here")
    if config.megatron_config is not None:
        raise SQFTError("megatron_config is not supported: SQFT adapts nn.Linear and Conv1D, leave it out")


def check_attached(config: Any) -> None:
    """Likewise, for fields that other code carries through files, so that they are refused where they would count."""
    for name, why in (
        ("arrow_config", "an SQFT adapter is not routed"),
        ("lora_ga_config", "LoRA-GA changes the base weight"),
    ):
        if getattr(config, name) is not None:
            raise SQFTError(f"{name} is not supported: {why}, leave it out")
