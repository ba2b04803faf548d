"""What an adapter was made over, and whether tensors that come in belong there.

Two things decide what A and B mean: the configuration (scaling, ranks, mask or none, grid or none) and the base (its
zeros, for quantization-aware ones its codes and scales). An adapter that is attached knows both. The hash and the stamp
that are found in a base are marked as found (`Found`, `FoundStamp`): in a saved configuration they are plain, and mean
"was trained over"; a configuration that was taken from a model is that of a new adapter wherever it is used again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor

from peft_ext.config import SQFTConfig
from sqft_plugins.adapter.trained_over import check_grid_stamp, check_mask_hash
from sqft_plugins.errors import MismatchError
from sqft_plugins.mask import mask_hash, nonzero_mask, pack_mask

DENSE_BELOW = 0.10
"""A base with fewer zeros than this is taken for a dense one (Gemma-3-270M, never pruned, has 4.6 %)."""

MEANING = (
    "sparse",
    "quantization_aware",
    "rounding",
    "use_rslora",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
)
"""The fields without which A and B cannot be read."""
SWAPPED = ("r", "lora_alpha", "rank_pattern")
"""Those that a hotswap brings along."""


class Found(str):
    """A mask hash that was made from the base at hand."""


class FoundStamp(dict[str, Any]):
    """A grid stamp that was made from the base and the INT4 folder at hand."""


def take_in(config: SQFTConfig, found: Mapping[str, Any], shared: bool) -> SQFTConfig:
    """The configuration of an adapter that was just added, with what was `found` in its base.

    The user's own object, as PEFT has it, and a copy where the object belongs to another adapter as well: `shared` with
    one of this model, or of a model over another base.
    """
    values = {key: value for key, value in found.items() if value is not None or is_found(getattr(config, key))}
    if shared or any(is_found(getattr(config, key)) and getattr(config, key) != values[key] for key in values):
        config = deepcopy(config)
    for key, value in values.items():
        setattr(config, key, value)
    return config


def is_found(value: Any) -> bool:
    """Whether a hash or stamp was made from the base at hand, not read from a saved configuration."""
    return isinstance(value, Found | FoundStamp)


def base_hash(weights: Mapping[str, Tensor]) -> tuple[str | None, float]:
    """(the hash of the base's masks, its sparsity).

    weights: module name → weight [out, in] of the unmerged base. The hash is None where there are no weights to look
    at: on the meta device, or zeros that FSDP's first process will replace (cpu_ram_efficient_loading).
    """
    if any(weight.is_meta for weight in weights.values()):
        return None, 0.0

    kept = total = 0
    packed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        mask = nonzero_mask(weight)
        kept, total = kept + int(mask.sum()), total + mask.numel()
        packed[name] = pack_mask(mask)
    return (mask_hash(packed) if kept else None), 1 - kept / max(total, 1)


def check_base(weights: Mapping[str, Tensor], config: SQFTConfig, adapter: str) -> Found | None:
    """The hash of the base's masks under a masked adapter; None where there is no weight yet.

    weights: as `base_hash` takes them. Logs a warning for a base that was never pruned. Raises MismatchError for a base
    with other zeros.
    """
    found, sparsity = base_hash(weights)
    if found is None:
        return None

    is_new = config.mask_hash is None or is_found(config.mask_hash)
    if is_new and sparsity < DENSE_BELOW:
        warnings.warn(
            f"sparse=True but only {sparsity:.1%} of the base's weights are zero: "
            "prune it first with `sqft prune`, or use sparse=False",
            stacklevel=2,
        )
    if not is_found(config.mask_hash):
        check_mask(config, found, adapter)
    return Found(found)


def check_mask(trained: SQFTConfig, found: str, adapter: str) -> None:
    """Raises MismatchError where an adapter was trained over other zeros than those `found` here."""
    check_mask_hash(adapter, trained.base_model_name_or_path, trained.mask_hash, found)


def check_stamp(config: SQFTConfig, adapter: str, masks: str, found: Mapping[str, Any], path: Path | str) -> None:
    """Raises MismatchError where the adapter was trained over another base or through another grid.

    config: the adapter's own, with the grid stamp that it was trained with (none: nothing to compare).
    masks, found: the mask hash and the grid stamp of this base.
    path: the INT4 folder, for messages.
    """
    trained, own = config.grid_stamp, config.base_model_name_or_path
    if trained is not None:
        if trained["base"] == found["base"]:
            check_mask(config, masks, adapter)
        check_grid_stamp(adapter, own, trained, found, path)


def check_settings(own: SQFTConfig, coming: SQFTConfig, adapter: str, source: str, swapped: bool = False) -> None:
    """Raises MismatchError where tensors would mean something else under the adapter that is here.

    own, coming: the configuration of the adapter here, and that of the tensors.
    adapter, source: its name, and where the tensors come from, for messages.
    swapped: whether a hotswap brings alpha and a fixed rank along.
    """
    for key in MEANING:
        if swapped and key in SWAPPED:
            continue
        here, there = (getattr(config, key) or None for config in (own, coming))
        if here != there:
            raise _other(adapter, source, key, getattr(own, key), getattr(coming, key))

    # a loaded adapter may have fewer ranks, a swapped one takes the place of the whole
    here, there = (set(config.rank_choices or [config.r]) for config in (own, coming))
    elastic = own.rank_choices is not None or coming.rank_choices is not None
    if (swapped and elastic and here != there) or (not swapped and not here <= there):
        raise _other(adapter, source, "rank_choices", own.rank_choices, coming.rank_choices)


def _other(adapter: str, source: str, key: str, here: object, there: object) -> MismatchError:
    return MismatchError(
        f"{source} has {key}={there!r}, and adapter {adapter!r} here {key}={here!r}: its tensors would mean something "
        "else. Load it under a name of its own, or attach the adapter with the settings it was trained with"
    )
