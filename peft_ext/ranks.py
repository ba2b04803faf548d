"""Factors whose shape is not what the configuration says: PEFT makes them, and cannot load them again.

`prepare_model_for_compiled_hotswap` pads A and B with zeros to one rank, and hotswap fills the first rows of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from peft_ext.registry import get_pattern_key
from sqft_plugins.elastic import slice_lora

if TYPE_CHECKING:
    from peft_ext.layer import Linear


def crop_padding(tensors: dict[str, Tensor], layers: Mapping[str, Linear], adapter: str) -> None:
    """Takes the zeros beyond the adapter's rank out of the tensors that are to be saved."""
    for name, layer in layers.items():
        rank, keys = layer.r[adapter], [f"{name}.lora_{factor}.{adapter}.weight" for factor in "AB"]
        if not all(key in tensors for key in keys) or len(tensors[keys[0]]) <= rank:
            continue
        A, B = (tensors[key] for key in keys)
        if not bool(A[rank:].any()) and not bool(B[:, rank:].any()):
            tensors.update(zip(keys, (factor.contiguous() for factor in slice_lora(A, B, rank)), strict=True))


def note_ranks(config: Any, layers: Mapping[str, Linear], adapter: str) -> None:
    """Writes the ranks of the layers into the configuration, where `prepare_model_for_compiled_hotswap(config=…)` has
    written those of the padding."""
    patterns = list(config.rank_pattern or {})
    ranks: dict[str | None, set[int]] = {}
    for name, layer in layers.items():
        key = get_pattern_key(patterns, name)
        ranks.setdefault(key if key in patterns else None, set()).add(layer.r[adapter])
    for pattern, found in ranks.items():
        if len(found) > 1:
            continue
        if pattern is None:
            config.r = found.pop()
        else:
            config.rank_pattern[pattern] = found.pop()
